// ModelSpec: what the model file says of itself. Mirrors clusir/spec.py. onnxruntime-web hands out no metadata, so the
// metadata_props are read from the file's protobuf here: ModelProto field 14, entries of key (1) and value (2).

/** The model file is not one, or contradicts itself or its other half. */
export class ModelError extends Error {
  name = "ModelError";
}

const refuse = (why) => {
  throw new ModelError(`${why}; export the model again with clusir-export`);
};

/** Calls visit(field, bytes) for every length-delimited field of a protobuf message; throws ModelError where it is
 * none. */
function walk(bytes, visit) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
      if (scale > 2 ** 60) break;
    }
    return refuse("the file is not an ONNX model, or not all of one");
  };
  while (at < bytes.length) {
    const key = varint();
    const wire = key % 8;
    let length = 0;
    if (wire === 0) varint();
    else if (wire === 1) length = 8;
    else if (wire === 5) length = 4;
    else if (wire === 2) length = varint();
    else refuse("the file is not an ONNX model, or not all of one");
    if (length > bytes.length - at) refuse("the file is not an ONNX model, or not all of one");
    if (wire === 2) visit((key - wire) / 8, bytes.subarray(at, at + length));
    at += length;
  }
}

/** @param {Uint8Array} bytes an ONNX file @returns {Map<string, string>} its metadata_props */
export function readMetadata(bytes) {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const text = (value) => {
    try {
      return decoder.decode(value);
    } catch {
      return refuse("the file is not an ONNX model: its metadata is not UTF-8");
    }
  };
  const metadata = new Map();
  let graph = false;
  walk(bytes, (field, entry) => {
    if (field === 7) graph = true;
    if (field !== 14) return;
    const pair = ["", ""];
    walk(entry, (part, value) => (pair[part - 1] = text(value)));
    metadata.set(pair[0], pair[1]);
  });
  if (!graph) refuse("the file is not an ONNX model: it holds no graph");
  return metadata;
}

/** The parts of one field of a protobuf message. */
function parts(bytes, wanted) {
  const found = [];
  walk(bytes, (field, part) => field === wanted && found.push(part));
  return found;
}

/** Whether a graph takes any number of pictures as its first input: the first of its lengths has a name, no number. */
export function takesBatches(bytes) {
  // ModelProto.graph, .input, ValueInfoProto.type, .tensor_type, .shape, .dim, and of that dim_param.
  return [7, 11, 2, 1, 2, 1, 2].reduce((message, field) => message && parts(message, field)[0], bytes) !== undefined;
}

const textOf = (bytes) => new TextDecoder().decode(bytes);

/**
 * The files that an ONNX file keeps its weights in, by their names beside it, each with its SHA-1 where the graph says
 * that of it, or "".
 * @param {Uint8Array} bytes @returns {Map<string, string>} throws ModelError for a name that is not of a file beside it
 */
export function weightsOf(bytes) {
  const files = new Map();
  const tensors = parts(bytes, 7).flatMap((graph) => parts(graph, 5)); // ModelProto.graph, .initializer
  for (const tensor of tensors) {
    // .external_data, of which each is a key and a value
    const text = (entry, field) => textOf(parts(entry, field)[0] ?? new Uint8Array());
    const entries = new Map(parts(tensor, 13).map((entry) => [text(entry, 1), text(entry, 2)]));
    const name = entries.get("location");
    if (name === undefined) continue;
    if (!name || /[/\\:?#\p{Cc}]/u.test(name) || [".", ".."].includes(name))
      refuse(`the graph keeps weights in ${JSON.stringify(name).slice(0, 80)}, which is no file beside it`);
    files.set(name, files.get(name) || (entries.get("checksum") ?? ""));
  }
  return files;
}

const within = (low, high) => (value) => Number.isInteger(value) && value >= low && value <= high;
const listOf = (check) => (value) => Array.isArray(value) && value.length <= 64 && value.every(check);
// At most 1024 characters, none of them half of a surrogate pair.
const isText = (value) => typeof value === "string" && [...value].length <= 1024 && !/\p{Surrogate}/u.test(value);
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isNumber = (value) => typeof value === "number"; // JSON.parse with `finite` lets no other one in

function isRange(value) {
  if (!Array.isArray(value) || value.length !== 2 || !value.every(isNumber)) return false;
  const [low, high] = value;
  return low >= -1e6 && high <= 1e6 && high - low >= 1e-3 * Math.max(1, Math.abs(low), Math.abs(high));
}

// The fields of Python's ModelSpec, in its order: what stands where the file does not say, and what is taken.
export const FIELDS = {
  name: ["clusir", isText],
  graph: ["whole", (value) => ["whole", "tile", "router", "pooled", "statistics"].includes(value)],
  spec_version: [undefined, within(1, 5)], // 2 where scale is not 1, 3 with maps, 4 with numbers, 5 with a maximum
  checkpoint_sha256: ["", isText],
  layout: ["NCHW", (value) => value === "NCHW"],
  colour_order: ["RGB", (value) => value === "RGB"],
  value_range: [[0, 1], isRange],
  input_name: ["image", isText],
  output_name: ["restored", isText],
  channels: [3, (value) => value === 1 || value === 3],
  size: [{}, isObject],
  tile_px: [256, within(1, 4096)],
  halo_px: [16, within(0, 4096)],
  precision: ["fp32", isText],
  router_form: ["dense", isText],
  dft_form: ["matmul", isText],
  clusters: [[], listOf(within(1, 4096))],
  experts: [[], listOf(within(1, 4096))],
  top_k: [1, within(1, 4096)],
  cluster_labels: [[], listOf((level) => Array.isArray(level) && level.every(isText))],
  tolerances: [{}, (value) => isObject(value) && Object.values(value).every((bound) => isNumber(bound) && bound >= 0)],
  statistics: [0, within(0, 2 ** 24)],
  scale: [1, within(1, 8)],
  families: [[], listOf(isText)],
  evidence_thresholds: [[], listOf((value) => typeof value === "number" && value >= 0 && value <= 1)],
  evidence_floors: [[], listOf((value) => typeof value === "number" && value >= 0 && value <= 1)],
  maps: [[], (value) => listOf(isText)(value) && value.length <= 8 && new Set(value).size === value.length],
  map_defaults: [[], listOf((value) => typeof value === "number" && value >= 0 && value <= 1)],
  numbers: [[], (value) => listOf(isText)(value) && value.length <= 8 && new Set(value).size === value.length],
  number_defaults: [[], listOf(isNumber)],
  number_ranges: [[], listOf((pair) => Array.isArray(pair) && pair.length === 2 && pair.every(isNumber))],
};

/** For JSON.parse: refuses numbers that no double holds; zero has no sign. */
const finite = (_, value) => {
  if (typeof value !== "number") return value;
  if (!Number.isFinite(value)) throw new RangeError("a number is too large");
  return value + 0;
};

/** @param {Map<string, string>} metadata @returns the spec, fields named as in Python; throws ModelError. */
export function readSpec(metadata) {
  const spec = {};
  if (!metadata.has("clusir.spec_version")) refuse("the model carries no clusir metadata (key clusir.spec_version)");
  for (const [field, [fallback, check]] of Object.entries(FIELDS)) {
    const text = metadata.get(`clusir.${field}`);
    try {
      spec[field] = text === undefined ? structuredClone(fallback) : JSON.parse(text, finite);
    } catch {
      refuse(`model metadata: clusir.${field} is not JSON`);
    }
    if (!check(spec[field])) refuse(`model metadata: clusir.${field} is ${JSON.stringify(spec[field])?.slice(0, 80)}`);
  }
  const { multiple_of = 16, minimum = 16, static_px = 0, maximum = 0 } = spec.size; // other keys are a newer writer's
  spec.size = { multiple_of, minimum, static_px, maximum };
  if (!within(1, 4096)(multiple_of) || !within(1, 65536)(minimum) || !within(0, 4096)(static_px)) {
    refuse("model metadata: the size rule is out of bounds");
  }
  if (!within(0, 65536)(maximum)) refuse("model metadata: the maximum of sizes is out of bounds");
  if (maximum && (static_px || spec.statistics))
    refuse("model metadata: a maximum beside one size, or beside statistics, is not read here");
  if (2 * spec.halo_px >= spec.tile_px) refuse("model metadata: the halo leaves no core of the tile");
  if (padded(spec.tile_px, spec.size) !== spec.tile_px) refuse("model metadata: the tile does not fit the size rule");
  if (spec.clusters.length !== spec.experts.length)
    refuse("model metadata: clusters and experts do not name the same levels");
  if (spec.experts.some((experts) => spec.top_k > experts))
    refuse("model metadata: top_k is more than a level's experts");
  if (spec.scale !== 1 && spec.clusters.length) refuse("model metadata: a scale beside routed levels is not read here");
  if (spec.evidence_thresholds.length !== spec.families.length || new Set(spec.families).size < spec.families.length)
    refuse("model metadata: evidence thresholds and families do not belong together");
  if (spec.evidence_floors.length && spec.evidence_floors.length !== spec.families.length)
    refuse("model metadata: evidence floors and families do not belong together");
  if (spec.map_defaults.length !== spec.maps.length) refuse("model metadata: map defaults and maps do not belong together");
  if (spec.maps.length && (spec.clusters.length || String(spec.value_range) !== "0,1"))
    refuse("model metadata: maps beside routed levels, or with a value range that is not 0..1, are not read here");
  if (spec.channels === 1 && spec.maps.length > 1) refuse("model metadata: a grey picture has one map at most");
  checkNumbers(spec);
  if (["pooled", "statistics"].includes(spec.graph) && (spec.clusters.length || !spec.statistics))
    refuse(`model metadata: a ${spec.graph} graph has statistics and no routing`);
  const labels = spec.cluster_labels;
  if (
    labels.length &&
    (labels.length !== spec.clusters.length || labels.some((l, i) => l.length !== spec.clusters[i]))
  ) {
    refuse("model metadata: cluster labels do not match the clusters");
  }
  return spec;
}

// Names of tensors that the graphs of a model have beside a number.
const TENSORS = [
  ...["posterior", "gate", "expert_probability", "statistics", "permissions", "evidence"],
  ...["weight", "given", "known", "level", "largest"],
];

function checkNumbers({ numbers, number_defaults: defaults, number_ranges: ranges, clusters, ...spec }) {
  if (numbers.length && clusters.length) refuse("model metadata: numbers beside routed levels are not read here");
  const taken = [...TENSORS, spec.input_name, spec.output_name, ...spec.maps];
  if (numbers.some((name) => taken.includes(name))) refuse("model metadata: a number has the name of another tensor");
  if (defaults.length !== numbers.length || ranges.length !== numbers.length)
    refuse("model metadata: numbers, their defaults and ranges do not belong together");
  if (ranges.some(([low, high], i) => !(low >= -1e6 && low <= defaults[i] && defaults[i] <= high && high <= 1e6)))
    refuse("model metadata: a range does not hold its number's default, or leaves -1e6..1e6");
}

/** How many channels the input has: the picture's, and its maps. */
export const planesOf = ({ channels, maps = [] }) => channels + maps.length;

/**
 * The smallest accepted length, in pixels, that is at least `length`, the largest one where none is; a static graph
 * always says its own.
 */
export function padded(length, { multiple_of, minimum, static_px, maximum = 0 }) {
  const most = maximum ? Math.floor(maximum / multiple_of) : Infinity;
  return static_px || Math.min(Math.ceil(Math.max(length, minimum) / multiple_of), most) * multiple_of;
}

export const sum = (values) => values.reduce((total, value) => total + value, 0);
