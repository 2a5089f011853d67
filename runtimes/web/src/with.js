// A picture in tiles through a session of somebody else's: a graph of one picture in, one picture out, without metadata.
import { ModelError, restore, steer } from "./restore.js";
import { padded } from "./spec.js";

const HALO_PX = 32;
const TILE_PX = 256;

/**
 * Restores or enlarges a picture of any size with an onnxruntime session (of onnxruntime-web or onnxruntime-node): one
 * float32 input 1x3xHxW (or 1x1xHxW), RGB in 0..1, and such an output. Tiles overlap and are blended.
 * @param session what InferenceSession.create gives @param image {data, width, height}, as `restore` takes it
 * @param options {Tensor, tile, halo, multipleOf, output, scale, strength, onProgress, signal}; see with.d.ts
 * @returns {Promise<{data, width, height}>} throws RangeError for options that contradict each other or the session,
 * ModelError for a session of another kind, or one that answers with another shape or with no numbers
 */
export async function restoreWith(session, image, options = {}) {
  const { Tensor, output = session?.outputNames?.[0], strength = 1, onProgress = () => {}, signal } = options;
  if (typeof session?.run !== "function" || !Array.isArray(session.inputNames)) {
    throw new TypeError("a session is what onnxruntime's InferenceSession.create gives");
  }
  if (typeof Tensor !== "function") throw new TypeError("options.Tensor is missing: give the Tensor of the session's onnxruntime");
  if (session.inputNames.length !== 1) {
    throw new ModelError(`the model takes ${session.inputNames.length} inputs (${session.inputNames}), one picture is given`);
  }
  if (!session.outputNames.includes(output)) {
    throw new RangeError(`the model has no output '${output}'; it has ${session.outputNames}`);
  }
  const run = async (_, feeds) => {
    const [[name, [data, dims]]] = Object.entries(feeds);
    return session.run({ [name]: new Tensor("float32", data, dims) }, [output]);
  };
  const size = sizeOf(session, options);
  const spec = { ...size, input_name: session.inputNames[0], output_name: output, graph: "whole", value_range: [0, 1],
    clusters: [], experts: [], families: [], statistics: 0 }; // prettier-ignore
  spec.scale = options.scale ?? (await probed(spec, run));
  whole("scale", spec.scale, 1);
  const stop = async (done, total) => {
    signal?.throwIfAborted();
    onProgress(done, total);
  };
  const { data, width, height } = await restore(image, spec, run, stop, steer(spec, undefined, strength));
  return { data, width, height };
}

function whole(name, value, least) {
  if (Number.isInteger(value) && value >= least) return value;
  throw new RangeError(`${name} is a whole number from ${least} on, not ${value}`);
}

/** Channels, tile, halo and size rule: what the session says of its input, where it does, and the options. */
function sizeOf(session, { tile, halo, multipleOf = 1 }) {
  const shape = session.inputMetadata?.[0]?.shape ?? [];
  const type = session.inputMetadata?.[0]?.type ?? "float32";
  const [batch, channels = 3, height, width] = shape;
  if (type !== "float32" || (shape.length && shape.length !== 4)) {
    throw new ModelError(`the model takes ${type} [${shape}], not float32 [1, 3, height, width]`);
  }
  const planes = typeof channels === "number" ? channels : 3;
  if ((typeof batch === "number" && batch !== 1) || ![1, 3].includes(planes)) {
    throw new ModelError(`the model takes [${shape}], not [1, 3, height, width] or [1, 1, height, width]`);
  }
  const fixed = [height, width].filter((side) => typeof side === "number");
  if (fixed.length === 1 || fixed[0] !== fixed[1]) {
    throw new ModelError(`the model takes [${shape}]; its height and width are one number, or both are open`);
  }
  const static_px = fixed[0] ?? 0;
  whole("multipleOf", multipleOf, 1);
  if (static_px && tile !== undefined && tile !== static_px) {
    throw new RangeError(`tile ${tile}: the model takes ${static_px} px only`);
  }
  const rule = { multiple_of: multipleOf, minimum: multipleOf, static_px, maximum: 0 };
  const tile_px = static_px || whole("tile", tile ?? padded(TILE_PX, rule), 1);
  if (!static_px && tile_px % multipleOf) throw new RangeError(`tile ${tile_px} is no multiple of ${multipleOf}`);
  const halo_px = whole("halo", halo ?? Math.min(HALO_PX, Math.floor(tile_px / 4)), 0);
  if (2 * halo_px >= tile_px) throw new RangeError(`halo ${halo_px}: twice that is not less than the tile, ${tile_px} px`);
  return { channels: planes, tile_px, halo_px, size: rule };
}

/** How many times as large the answer is: one black tile tells. */
async function probed({ channels, tile_px, size, input_name, output_name }, run) {
  const side = size.static_px || padded(Math.min(tile_px, 64), size);
  const answer = await run("tile", { [input_name]: [new Float32Array(channels * side * side), [1, channels, side, side]] });
  const dims = answer[output_name]?.dims ?? [];
  const scale = dims[3] / side;
  if (dims.length !== 4 || dims[0] !== 1 || dims[1] !== channels || dims[2] !== dims[3] || !Number.isInteger(scale) || scale < 1) {
    throw new ModelError(`output '${output_name}' of [1,${channels},${side},${side}] came out as [${dims}], which is no picture`);
  }
  return scale;
}
