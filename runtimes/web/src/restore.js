// The loop that restores a picture with two graphs; knows no runtime, no worker, no page.
import { ModelError, planesOf, readMetadata, readSpec, sum, takesBatches, weightsOf } from "./spec.js";
import { isPlain, nothingToMend, steer } from "./steering.js";
import { channelsOf, checkFinite, checkSamples, enlargedAlpha, gather, mapsOf, numbersOf, writeRow } from "./pixels.js";
import { enlarged, planAxis, sample } from "./tiling.js";
import { gates, mean } from "./routing.js";
import { pool } from "./statistics.js";

export { ModelError, readMetadata, readSpec, steer, weightsOf };

// What the two graphs of a model have in common; precision may differ.
const SHARED = [
  ...["checkpoint_sha256", "clusters", "experts", "top_k", "channels", "value_range", "input_name", "tile_px", "size"],
  ...["statistics", "families", "evidence_thresholds", "evidence_floors", "maps", "map_defaults"],
  ...["numbers", "number_defaults", "number_ranges"],
];

/**
 * The spec of a model from its files, checked against each other.
 * @param {Uint8Array} graph a tile graph, or a whole graph @param {Uint8Array} [second] the router or statistics graph
 * that belongs to a tile graph
 */
export function specOf(graph, second) {
  const spec = readSpec(readMetadata(graph));
  if (["router", "statistics"].includes(spec.graph))
    throw new ModelError(`this is a ${spec.graph} graph; open the model it belongs to`);
  if ((spec.graph === "tile") !== Boolean(second)) {
    throw new ModelError("a tile graph needs its router or statistics graph, and only a tile graph does");
  }
  if (second) {
    const kind = secondOf(spec);
    const other = readSpec(readMetadata(second));
    if (other.graph !== kind || SHARED.some((key) => JSON.stringify(other[key]) !== JSON.stringify(spec[key]))) {
      throw new ModelError(`the tile graph and the ${kind} graph are of two different models`);
    }
    if (kind === "statistics" && !spec.statistics)
      throw new ModelError("a tile graph has routed levels or statistics, and this one names none");
    if (kind === "statistics") spec.one_window = !takesBatches(second);
  }
  return spec;
}

/** Which graph a tile graph's model needs beside it: "router" or "statistics"; undefined for a whole graph. */
export function secondOf(spec) {
  if (spec.graph !== "tile") return undefined;
  return spec.clusters.length ? "router" : "statistics";
}

/**
 * Restores a picture of any size. Everything is done tile by tile; `pause` is awaited between tiles, and throws to
 * stop; after the last tile (done === total) the picture is complete and what it throws changes nothing.
 * @param picture {data, width, height}: interleaved Uint8, Uint16 or Float32 samples of 1 to 4 channels: grey, grey and
 * alpha, RGB, RGB and alpha; alpha is kept
 * @param spec what specOf returned
 * @param run (graph: "tile" | "router" | "statistics", feeds: {name: [data, dims]}) => Promise<{name: {data, dims}}>
 * @param pause (done, total) => Promise
 * @param steering {permissions, blend} of `steer`: what may be mended, and how far; strength 0 runs nothing
 * @param statistics of a network that pools over the whole picture: "sampled" pools windows of it, "exact" all of it
 * @param given {maps, numbers} of a network that takes some: maps, such as a mask, are {name: number | {data, width,
 * height}}, each of the picture's size; numbers, such as a noise level, {name: number}. Those that are not named have
 * their defaults
 * @returns {Promise<{data, width, height, posterior, gate, evidence: Float32Array}>} `data` of the same type;
 * width and height are spec.scale times those of the image, and alpha is enlarged bicubically
 */
export async function restore(picture, spec, run, pause, steering = steer(spec), statistics = "sampled", { maps = {}, numbers = {} } = {}) {
  const channels = channelsOf(picture, spec);
  const { data, width, height } = picture;
  checkSamples(data);
  const image = { data, width, height, maps: mapsOf(maps, spec, picture) };
  const given = numbersOf(numbers, spec); // what every tile is given beside its pixels
  const rows = planAxis(height, spec);
  const columns = planAxis(width, spec);
  const total = rows.starts.length * columns.starts.length;
  const dims = [1, planesOf(spec), rows.tile, columns.tile];
  const windowAt = (top, left) => gather(image, channels, spec, rows, columns, top, left);
  await pause(0, total);

  const shared = spec.graph === "tile";
  const pools = spec.graph === "pooled" || secondOf(spec) === "statistics";
  if (!["sampled", "exact"].includes(statistics)) throw new RangeError(`statistics '${statistics}' is not sampled or exact`);
  if (statistics === "exact" && !pools) throw new RangeError("exact statistics: the model pools nothing over the picture");
  if (spec.graph === "pooled" && total > 1) {
    throw new RangeError(
      `the picture takes ${total} tiles, which share what the model pools over it: open NAME.onnx with NAME.tile.onnx ` +
        "and NAME.statistics.onnx beside it",
    );
  }
  if (!shared && !isPlain(steering)) {
    throw new RangeError("fix and strengths of families need the model's tile and router graphs; strength 0..1 works");
  }
  if (steering.blend === 0) {
    await Promise.resolve(pause(total, total)).catch(() => {});
    const none = (lengths) => new Float32Array(sum(lengths));
    const routing = {
      posterior: none(spec.clusters),
      gate: none(spec.experts),
      evidence: none(spec.families.map(() => 1)),
    };
    return { data: data.slice(), width, height, ...routing };
  }
  const families = [1, spec.families.length]; // of permissions and evidence, where the model can be told
  const told = spec.families.length ? { permissions: [steering.permissions, families] } : {};
  const seen = { posterior: [], expert: [], evidence: [] };
  let posterior = new Float32Array(0);
  let gate = posterior;
  if (shared && pools) {
    const ask = (feeds) => run("statistics", { ...feeds, ...numbersOf(numbers, spec) });
    const found = await pool(image, channels, spec, ask, statistics === "exact", () => pause(0, total));
    given.statistics = [found, [1, spec.statistics]];
  } else if (shared) {
    const samples = [];
    for (const top of sample(rows)) for (const left of sample(columns)) samples.push([top, left]);
    // A router with statistics takes all samples for one picture; one without looks at each alone.
    const together = spec.statistics ? [samples] : samples.map((one) => [one]);
    for (const batch of together) {
      const size = dims.reduce((product, length) => product * length);
      const images = new Float32Array(batch.length * size);
      batch.forEach(([top, left], i) => images.set(windowAt(top, left), i * size));
      const out = await run("router", { [spec.input_name]: [images, [batch.length, ...dims.slice(1)]], ...told });
      seen.posterior.push(checked(out, "posterior", [1, sum(spec.clusters)]));
      seen.expert.push(checked(out, "expert_probability", [1, sum(spec.experts)]));
      if (spec.families.length) seen.evidence.push(checked(out, "evidence", families));
      if (spec.statistics) {
        given.statistics = [checked(out, "statistics", [1, spec.statistics]), [1, spec.statistics]];
      }
      await pause(0, total);
    }
    posterior = mean(seen.posterior);
    gate = gates(mean(seen.expert), spec);
    given.posterior = [posterior, [1, posterior.length]];
    given.gate = [gate, [1, gate.length]];
    const evidence = seen.evidence.length ? mean(seen.evidence) : new Float32Array(0);
    if (nothingToMend(evidence, steering.permissions, spec)) {
      await Promise.resolve(pause(total, total)).catch(() => {});
      return { data: data.slice(), width, height, posterior, gate, evidence };
    }
  }

  // From here on lengths are those of the picture that comes out.
  const scale = spec.scale;
  const large = { rows: enlarged(rows, scale, spec.halo_px), columns: enlarged(columns, scale, spec.halo_px) };
  const outDims = [1, spec.channels, large.rows.tile, large.columns.tile];
  const out = new data.constructor(data.length * scale * scale);
  const rowLength = large.columns.length * spec.channels;
  const bandRows = Math.min(large.rows.tile, large.rows.length);
  const band = new Float32Array(rowLength * bandRows); // row y of the picture lives at y % bandRows
  let done = 0;
  for (let ty = 0; ty < rows.starts.length; ty++) {
    const top = large.rows.starts[ty];
    for (let tx = 0; tx < columns.starts.length; tx++) {
      const feeds = { [spec.input_name]: [windowAt(rows.starts[ty], columns.starts[tx]), dims], ...given };
      const result = await run("tile", feeds);
      let restored = checked(result, spec.output_name, outDims);
      if (!shared && spec.clusters.length) {
        seen.posterior.push(checked(result, "posterior", [1, sum(spec.clusters)]));
        seen.expert.push(checked(result, "gate", [1, sum(spec.experts)]));
        if (spec.families.length) {
          const evidence = checked(result, "evidence", families);
          seen.evidence.push(evidence);
          if (nothingToMend(evidence, steering.permissions, spec)) restored = feeds[spec.input_name][0];
        }
      }
      add(restored, band, bandRows, large, ty, tx, spec.channels);
      if (++done < total) await pause(done, total);
    }
    const finished = ty + 1 < rows.starts.length ? large.rows.starts[ty + 1] : large.rows.length;
    for (let y = top; y < finished; y++) {
      const at = (y % bandRows) * rowLength;
      const alphas = scale === 1 ? null : enlargedAlpha(image, channels, scale, y);
      writeRow(data, out, channels, spec, large.columns.length, y, band, at, { alphas, blend: steering.blend });
      band.fill(0, at, at + rowLength);
    }
  }
  if (!shared && spec.clusters.length) {
    posterior = mean(seen.posterior);
    gate = mean(seen.expert);
  }
  await Promise.resolve(pause(total, total)).catch(() => {});
  const evidence = seen.evidence.length ? mean(seen.evidence) : new Float32Array(0);
  return { data: out, width: large.columns.length, height: large.rows.length, posterior, gate, evidence };
}

function checked(outputs, name, dims) {
  const output = outputs[name];
  const kind = Object.prototype.toString.call(output?.data);
  if (kind !== "[object Float32Array]" || String(output.dims) !== String(dims)) {
    throw new ModelError(`output '${name}' came out as [${output?.dims}], not as float32 [${dims}]`);
  }
  checkFinite(output.data, name);
  return output.data;
}

/** Adds one restored tile, weighted, to the band of sums. */
function add(restored, band, bandRows, { rows, columns }, ty, tx, channels) {
  const width = columns.length;
  const top = rows.starts[ty];
  const left = columns.starts[tx];
  const high = Math.min(rows.tile, rows.length - top);
  const wide = Math.min(columns.tile, width - left);
  const weights = columns.weights[tx];
  for (let y = 0; y < high; y++) {
    const weight = rows.weights[ty][y];
    if (weight === 0) continue;
    const into = ((top + y) % bandRows) * width * channels + left * channels;
    for (let c = 0; c < channels; c++) {
      const from = (c * rows.tile + y) * columns.tile;
      for (let x = 0; x < wide; x++) band[into + x * channels + c] += restored[from + x] * weight * weights[x];
    }
  }
}
