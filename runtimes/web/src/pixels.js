// Between a picture's own samples and the model's planes of float. Mirrors runtimes/restore/pixels.py.
import { reflect } from "./tiling.js";

const OWN_ALPHA = "alpha";
const TOPS = { Uint8Array: 255, Uint8ClampedArray: 255, Uint16Array: 65535, Float32Array: 1 };

/** 255, 65535 or 1: what stands for 1 in the sample type; throws TypeError for any other array. */
export function topOf(data) {
  // By name, not by instanceof: an array of an iframe or a test's page has constructors of its own.
  const top = ArrayBuffer.isView(data) ? TOPS[Object.prototype.toString.call(data).slice(8, -1)] : undefined;
  if (top !== undefined) return top;
  throw new TypeError("pixels are Uint8Array, Uint8ClampedArray, Uint16Array or Float32Array");
}

/** Throws RangeError or TypeError where `image` is no {data, width, height} for the model; returns its channels: 1
 * grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. */
export function channelsOf(image, spec) {
  if (image === null || typeof image !== "object") throw new TypeError("a picture is {data, width, height}");
  const { data, width, height } = image;
  topOf(data);
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0)) {
    throw new RangeError(`a picture of ${width} x ${height} pixels cannot be restored; both must be at least 1`);
  }
  const channels = data.length / (width * height);
  const most = spec.channels === 3 ? 4 : 2;
  if (!(Number.isInteger(channels) && channels >= 1 && channels <= most)) {
    throw new RangeError(`${data.length} samples are not ${width} x ${height} pixels of 1 to ${most} channels`);
  }
  return channels;
}

/** The maps of a model in its order, each as numbers 0..1 for every pixel of the picture, or one for all.
 * @param given {name: number | {data, width, height}}; what is not named has its default. Of a coloured picture the mean
 * of its colours is taken. A map called `alpha` that is not named is the picture's own alpha, where it has one. Throws
 * RangeError or TypeError for other names, sizes and numbers. */
export function mapsOf(given, { maps = [], map_defaults: defaults = [] }, picture) {
  const { data, width, height } = picture;
  for (const name of Object.keys(given)) {
    if (!maps.includes(name)) throw new RangeError(`the model takes no map '${name}'; it has ${maps.join(", ") || "none"}`);
  }
  return maps.map((name, i) => {
    if (name === OWN_ALPHA && given[name] === undefined && data) { // an ImageBitmap is read later
      const channels = data.length / (width * height);
      if (coloursOf(channels) < channels)
        return Float32Array.from({ length: width * height }, (_, pixel) => data[(pixel + 1) * channels - 1] / topOf(data));
    }
    const value = given[name] ?? defaults[i];
    if (typeof value === "number") {
      if (!(value >= 0 && value <= 1)) throw new RangeError(`map '${name}' is ${value}, not 0..1`);
      return value;
    }
    const channels = channelsOf(value, { channels: 3 });
    if (value.width !== width || value.height !== height) {
      throw new RangeError(`map '${name}' is ${value.width} x ${value.height}, the picture ${width} x ${height}`);
    }
    checkSamples(value.data);
    const [colours, top] = [coloursOf(channels), topOf(value.data)];
    return Float32Array.from({ length: width * height }, (_, pixel) => {
      let sum = 0;
      for (let c = 0; c < colours; c++) sum += Math.fround(value.data[pixel * channels + c] / top);
      return sum / colours;
    });
  });
}

/** The numbers of a model as tensors by name: those that are `given`, else their defaults. Throws RangeError for other
 * names, and for what is no number within its range. */
export function numbersOf(given, { numbers = [], number_defaults: defaults, number_ranges: ranges }) {
  for (const name of Object.keys(given)) {
    if (!numbers.includes(name))
      throw new RangeError(`the model takes no number '${name}'; it has ${numbers.join(", ") || "none"}`);
  }
  const tensor = (name, i) => {
    const value = given[name] ?? defaults[i];
    const [low, high] = ranges[i];
    if (typeof value === "number" && value >= low && value <= high) return [Float32Array.of(value), [1]];
    throw new RangeError(`number '${name}' is ${value}, not within ${low}..${high}`);
  };
  return Object.fromEntries(numbers.map((name, i) => [name, tensor(name, i)]));
}

/** Throws RangeError for float samples outside 0..1, alpha among them. */
export function checkSamples(data) {
  if (topOf(data) === 1 && !data.every((value) => value >= 0 && value <= 1))
    throw new RangeError("float samples are within 0..1");
}

/** The picture's channels without alpha, which 2 and 4 channels have. */
const coloursOf = (channels) => channels - (channels % 2 === 0 ? 1 : 0);

/** One tile as planes [channels, rows.tile, columns.tile], reflected where it reaches over the picture's edge. A grey
 * picture gives its one channel to each of the model's. The image's `maps` (of `mapsOf`) follow as planes of their own. */
export function gather({ data, maps = [] }, channels, spec, rows, columns, top, left) {
  const planes = new Float32Array((spec.channels + maps.length) * rows.tile * columns.tile);
  const [low, high] = spec.value_range.map(Math.fround);
  const scale = Math.fround(spec.value_range[1] - spec.value_range[0]);
  const plain = low === 0 && high === 1;
  const divisor = topOf(data);
  const offsets = Int32Array.from({ length: columns.tile }, (_, x) => reflect(left + x, columns.length) * channels);
  for (let y = 0; y < rows.tile; y++) {
    const row = reflect(top + y, rows.length) * columns.length * channels;
    for (let c = 0; c < spec.channels; c++) {
      const into = (c * rows.tile + y) * columns.tile;
      const from = row + (channels < 3 ? 0 : c);
      for (let x = 0; x < columns.tile; x++) {
        const unit = data[from + offsets[x]] / divisor; // rounded to float32 where it is stored
        planes[into + x] = plain ? unit : Math.fround(Math.fround(unit) * scale) + low;
      }
    }
    maps.forEach((map, i) => {
      const into = ((spec.channels + i) * rows.tile + y) * columns.tile;
      for (let x = 0; x < columns.tile; x++) {
        planes[into + x] = typeof map === "number" ? map : map[(row + offsets[x]) / channels];
      }
    });
  }
  return planes;
}

/** What one sample of an axis that is enlarged is made of: Pillow's bicubic kernel (a = -0.5), the weights of what lies
 * within the axis, normalised. @returns {[number, number][]} position and weight */
function taps(position, length, scale) {
  const centre = (position + 0.5) / scale;
  const found = [];
  for (let x = Math.max(0, Math.floor(centre - 1.5)); x < Math.min(length, Math.floor(centre + 2.5)); x++) {
    const d = Math.abs(x + 0.5 - centre);
    found.push([x, d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0]);
  }
  const sum = found.reduce((total, [, weight]) => total + weight, 0);
  return found.map(([x, weight]) => [x, weight / sum]);
}

/** Row `y` of the alpha channel enlarged bicubically, as 0..1; null where the picture has none. */
export function enlargedAlpha({ data, width, height }, channels, scale, y) {
  const colours = coloursOf(channels);
  if (channels === colours) return null;
  const top = topOf(data);
  const rows = taps(y, height, scale);
  return Float32Array.from({ length: scale * width }, (_, x) => {
    const columns = taps(x, width, scale);
    let value = 0;
    for (const [row, weight] of rows) {
      let across = 0;
      for (const [column, share] of columns)
        across += share * Math.fround(data[(row * width + column) * channels + colours] / top);
      value += weight * Math.fround(across);
    }
    return value;
  });
}

/** Writes one row of sums (interleaved, the model's channels and range) to `out`, with the alpha of `data`, or, where it
 * was enlarged, with `alphas` (0..1); a grey picture is the mean of the model's channels. `blend` is the
 * share of what was restored, held to 0..1; the rest is `data`. */
export function writeRow(data, out, channels, spec, width, y, sums, at, { alphas = null, blend = 1 } = {}) {
  const top = topOf(out);
  const low = Math.fround(spec.value_range[0]);
  const scale = Math.fround(spec.value_range[1] - spec.value_range[0]);
  const colours = coloursOf(channels);
  const share = Math.fround(blend);
  const unit = (index) => Math.fround(Math.fround(sums[index] - low) / scale);
  let index = y * width * channels;
  for (let x = 0; x < width; x++) {
    const from = at + x * spec.channels;
    for (let c = 0; c < colours; c++) {
      let value = 0;
      if (colours === spec.channels) value = unit(from + c);
      else {
        for (let i = 0; i < spec.channels; i++) value += unit(from + i);
        value = Math.fround(value / spec.channels); // summed in double precision: the mean of equal numbers is theirs
      }
      let clipped = Math.min(Math.max(value, 0), 1);
      if (share !== 1) {
        const before = Math.fround(data[index + c] / top);
        clipped = Math.fround(before + Math.fround(share * Math.fround(clipped - before)));
      }
      out[index + c] = top === 1 ? clipped : halfEven(Math.fround(clipped * top));
    }
    if (alphas) {
      const clipped = Math.min(Math.max(alphas[x], 0), 1);
      out[index + colours] = top === 1 ? clipped : halfEven(Math.fround(clipped * top));
    } else if (channels > colours) out[index + colours] = data[index + colours];
    index += channels;
  }
}

/** Throws Error where output `name` holds NaN or infinity. */
export function checkFinite(values, name) {
  for (const value of values) {
    if (!Number.isFinite(value))
      throw new Error(`the model returned NaN or infinity (${name}); its file is damaged or it overflowed`);
  }
}

function halfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}
