// Between a picture's own samples and the model's planes of float. Mirrors runtimes/restore/pixels.py.
import { reflect } from "./tiling.js";

const TOPS = { Uint8Array: 255, Uint8ClampedArray: 255, Uint16Array: 65535, Float32Array: 1 };

/** 255, 65535 or 1: what stands for 1 in the sample type; throws TypeError for any other array. */
export function topOf(data) {
  // By name, not by instanceof: an array of an iframe or a test's page has constructors of its own.
  const top = ArrayBuffer.isView(data) ? TOPS[Object.prototype.toString.call(data).slice(8, -1)] : undefined;
  if (top !== undefined) return top;
  throw new TypeError("pixels are Uint8Array, Uint8ClampedArray, Uint16Array or Float32Array");
}

/** Throws RangeError or TypeError where `image` {data, width, height} is no picture for the model; returns its
 * channels. */
export function channelsOf({ data, width, height }, spec) {
  const top = topOf(data);
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0)) {
    throw new RangeError(`a picture of ${width} x ${height} pixels cannot be restored; both must be at least 1`);
  }
  const channels = data.length / (width * height);
  if (channels !== spec.channels && channels !== spec.channels + 1) {
    throw new RangeError(
      `${data.length} samples are not ${width} x ${height} pixels of ${spec.channels} channels, with or without alpha`,
    );
  }
  if (top === 1 && !data.every((value) => value >= 0 && value <= 1))
    throw new RangeError("float samples are within 0..1");
  return channels;
}

/** One tile as planes [channels, rows.tile, columns.tile], reflected where it reaches over the picture's edge. */
export function gather({ data }, channels, spec, rows, columns, top, left) {
  const planes = new Float32Array(spec.channels * rows.tile * columns.tile);
  const [low, high] = spec.value_range;
  const scale = high - low;
  const divisor = topOf(data);
  const offsets = Int32Array.from({ length: columns.tile }, (_, x) => reflect(left + x, columns.length) * channels);
  for (let y = 0; y < rows.tile; y++) {
    const row = reflect(top + y, rows.length) * columns.length * channels;
    for (let c = 0; c < spec.channels; c++) {
      const into = (c * rows.tile + y) * columns.tile;
      for (let x = 0; x < columns.tile; x++)
        planes[into + x] = low + Math.fround(data[row + offsets[x] + c] / divisor) * scale;
    }
  }
  return planes;
}

/** Writes one row of sums (interleaved colours, the model's range) to `out`, with the alpha of `data`. */
export function writeRow(data, out, channels, spec, width, y, sums, at) {
  const top = topOf(out);
  const [low, high] = spec.value_range;
  let index = y * width * channels;
  for (let x = 0; x < width; x++) {
    for (let c = 0; c < spec.channels; c++) {
      const value = (sums[at + x * spec.channels + c] - low) / (high - low);
      if (!Number.isFinite(value))
        throw new Error("the model returned NaN or infinity; its file is damaged or it overflowed");
      const clipped = Math.min(Math.max(value, 0), 1);
      out[index + c] = top === 1 ? clipped : halfEven(Math.fround(clipped * top));
    }
    if (channels > spec.channels) out[index + spec.channels] = data[index + spec.channels];
    index += channels;
  }
}

function halfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
