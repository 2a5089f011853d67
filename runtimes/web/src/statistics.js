// What a network pools over the whole picture, shared by its tiles. Mirrors runtimes/restore/statistics.py.
import { checkFinite, gather } from "./pixels.js";
import { ModelError, padded, planesOf } from "./spec.js";

const SAMPLES = 5; // windows along an axis, at most
const STEP = 8; // windows start at multiples of it

const down = (value, step) => Math.floor(value / step) * step;

/** To the nearest whole number, ties to the even one. */
function rounded(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

/** The windows along an axis: {start, side, first, last}, of which first to last (in the window) count. */
export function windowsAlong(length, spec, exact) {
  const { tile_px: tile, halo_px: halo } = spec;
  const side = padded(length, spec.size);
  if (side <= tile) return [{ start: 0, side, first: 0, last: side }];
  const grid = Math.max(spec.size.multiple_of, STEP);
  const step = Math.max(spec.size.multiple_of, down(tile - 2 * halo, grid));
  const count = Math.ceil((side - tile) / step) + 1;
  if (exact || count <= Math.floor(SAMPLES / 2) + 1) {
    const starts = Array.from({ length: count }, (_, i) => Math.min(i * step, side - tile));
    // Cores cover the axis once: they meet in the middle of what two windows overlap by.
    const ends = starts.map((start, i) =>
      i + 1 < count ? down(Math.floor((start + tile + starts[i + 1]) / 2), grid) : start + tile,
    );
    return starts.map((start, i) => ({
      start,
      side: tile,
      first: (i ? ends[i - 1] : 0) - start,
      last: ends[i] - start,
    }));
  }
  const small = padded(Math.max(Math.floor(tile / 2), Math.min(tile, 4 * halo)), spec.size);
  const end = side - small;
  return Array.from({ length: SAMPLES }, (_, i) => {
    const start = Math.min(rounded((end * i) / (SAMPLES - 1) / grid) * grid, end);
    return { start, side: small, first: start === 0 ? 0 : halo, last: start === end ? small : small - halo };
  });
}

/**
 * The statistics of a picture, by its statistics graph.
 * @param image {data, width, height, maps} @param channels of the image @param run (feeds) => Promise<{name: {data, dims}}>
 * @param exact whether all of the picture is pooled, not samples @param pause awaited between runs; throws to stop
 * @returns {Promise<Float32Array>} spec.statistics numbers
 */
export async function pool(image, channels, spec, run, exact, pause) {
  const rows = windowsAlong(image.height, spec, exact);
  const columns = windowsAlong(image.width, spec, exact);
  const tall = { length: image.height, tile: rows[0].side };
  const wide = { length: image.width, tile: columns[0].side };
  const pixels = tall.tile * wide.tile;
  const places = rows.flatMap((row) => columns.map((column) => [row, column]));
  const together = exact || spec.one_window ? 1 : places.length;
  const count = spec.statistics;
  const given = new Float32Array(count);
  let known = new Float32Array(count);
  given[0] = padded(image.height, spec.size) * padded(image.width, spec.size);
  let levels = 1;
  for (let level = 1; level <= levels; level++) {
    const total = new Float64Array(count);
    const most = new Float64Array(count).fill(-Infinity);
    let weights = 0;
    let out;
    for (let at = 0; at < places.length; at += together) {
      const batch = places.slice(at, at + together);
      const images = new Float32Array(batch.length * planesOf(spec) * pixels);
      const counts = new Float32Array(batch.length * pixels);
      batch.forEach(([row, column], i) => {
        const planes = gather(image, channels, spec, tall, wide, row.start, column.start);
        images.set(planes, i * planes.length);
        for (let y = row.first; y < row.last; y++) {
          const line = i * pixels + y * wide.tile;
          counts.fill(1, line + column.first, line + column.last);
        }
      });
      const dims = [tall.tile, wide.tile];
      out = await run({
        [spec.input_name]: [images, [batch.length, planesOf(spec), ...dims]],
        weight: [counts, [batch.length, 1, ...dims]],
        given: [given.slice(), [1, count]],
        known: [known, [1, count]],
      });
      const row = numbers(out, "statistics", count);
      checkFinite(row, "statistics");
      const weight = counts.reduce((sum, one) => sum + one, 0);
      for (let i = 0; i < count; i++) {
        total[i] += weight * row[i];
        most[i] = Math.max(most[i], row[i]);
      }
      weights += weight;
      await pause();
    }
    const largest = numbers(out, "largest", count);
    // The first one is the picture's size.
    for (let i = 1; i < count; i++)
      if (!(known[i] > 0.5)) given[i] = largest[i] > 0.5 ? most[i] : total[i] / weights;
    if (places.length <= together) break; // the graph pools its batch level by level itself
    const of = numbers(out, "level", count);
    known = Float32Array.from(of, (one) => (one <= level ? 1 : 0));
    levels = of.reduce((most, one) => Math.max(most, one), 1);
  }
  return given;
}

function numbers(outputs, name, count) {
  const { data } = outputs[name] ?? {};
  if (Object.prototype.toString.call(data) === "[object Float32Array]" && data.length === count) return data;
  throw new ModelError(`output '${name}' of the statistics graph is not ${count} numbers of float32`);
}
