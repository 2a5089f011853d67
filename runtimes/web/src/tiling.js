// Where the tiles of a picture lie and how they blend. Mirrors runtimes/restore/tiling.py, which explains the formulas.
import { padded } from "./spec.js";

/** @returns {{length: number, tile: number, starts: number[], weights: Float32Array[]}} the tiles along one axis */
export function planAxis(length, spec) {
  const halo = spec.halo_px;
  if (length <= spec.tile_px) {
    const size = padded(length, spec.size);
    return { length, tile: size, starts: [0], weights: [new Float32Array(size).fill(1)] };
  }
  const count = Math.ceil((length - spec.tile_px) / (spec.tile_px - 2 * halo)) + 1;
  // No longer than the model's tile, which obeys the size rule itself; a static graph knows one size.
  const tile = padded(Math.ceil((length - 2 * halo) / count) + 2 * halo, spec.size);
  const starts = Array.from({ length: count }, (_, i) => Math.min(i * (tile - 2 * halo), length - tile));
  return { length, tile, starts, weights: weigh(starts, tile, halo) };
}

/** The same tiles in the pixels of a picture `scale` times as long; `halo` is that of the small one. */
export function enlarged(axis, scale, halo) {
  const tile = scale * axis.tile;
  const starts = axis.starts.map((start) => scale * start);
  return { length: scale * axis.length, tile, starts, weights: weigh(starts, tile, scale * halo) };
}

function weigh(starts, tile, halo) {
  return starts.map((start, i) =>
    Float32Array.from({ length: tile }, (_, offset) => {
      const x = start + offset;
      const left = i > 0 ? ramp(x, starts[i - 1], start, tile, halo) : 1;
      const right = i + 1 < starts.length ? ramp(x, start, starts[i + 1], tile, halo) : 0;
      return left - right;
    }),
  );
}

function ramp(x, start, following, tile, halo) {
  const middle = (start + following + tile) / 2;
  if (halo === 0) return x + 0.5 > middle ? 1 : 0;
  const t = Math.min(Math.max((x + 0.5 - middle) / (1.5 * halo) + 0.5, 0), 1);
  return Math.floor(t * t * (3 - 2 * t) * 2048 + 0.5) / 2048;
}

/** The pixel that reflection (without repeating the edge) puts at `position` of an axis of `length`. */
export function reflect(position, length) {
  if (length === 1) return 0;
  const within = position % (2 * length - 2);
  return within < length ? within : 2 * length - 2 - within;
}

/** The first pixels of at most three windows as long as a tile, evenly spread on JPEG's grid: where routing looks. */
export function sample({ length, tile }) {
  const count = Math.max(1, Math.min(3, Math.ceil((length - 7) / tile)));
  return Array.from({ length: count }, (_, i) => 8 * Math.floor((i * (length - tile)) / Math.max(1, count - 1) / 8));
}
