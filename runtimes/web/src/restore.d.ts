/** Samples of interleaved pixels: grey, grey and alpha, RGB, or RGB and alpha; integers span 0..1, floats lie in it. */
export type Samples = Uint8Array | Uint8ClampedArray | Uint16Array | Float32Array;

export interface Picture<S extends Samples = Samples> {
  data: S;
  width: number;
  height: number;
}

export interface Restored<S extends Samples = Samples> extends Picture<S> {
  /** Cluster posterior of all routed levels, concatenated; each level sums to 1. */
  posterior: Float32Array;
  /** Gates after top-k of all routed levels, concatenated. */
  gate: Float32Array;
  /** How likely each of the model's families of degradations is in the picture; empty for a model without. */
  evidence: Float32Array;
}

/** What a model says of itself; `spec.schema.json` of the Python package describes every field. */
export interface ModelSpec {
  name: string;
  graph: "whole" | "tile" | "router" | "pooled" | "statistics";
  spec_version: 1 | 2 | 3 | 4;
  checkpoint_sha256: string;
  layout: "NCHW";
  colour_order: "RGB";
  /** What black and white are as the model's numbers. */
  value_range: [number, number];
  input_name: string;
  output_name: string;
  channels: 1 | 3;
  size: { multiple_of: number; minimum: number; static_px: number; maximum: number };
  tile_px: number;
  halo_px: number;
  precision: string;
  router_form: string;
  dft_form: string;
  /** Clusters and experts of each routed level; empty: a model without routing. */
  clusters: number[];
  experts: number[];
  top_k: number;
  cluster_labels: string[][];
  tolerances: Record<string, number>;
  /** Length of the pooled statistics that tiles share; 0: each computes its own. */
  statistics: number;
  /** How many times as high and wide the answer is. */
  scale: number;
  /** Families of degradations that may be mended or not; empty: the model cannot be told. */
  families: string[];
  /** The evidence from which on a family is mended unasked. */
  evidence_thresholds: number[];
  /** empty: the router takes no permissions below -1 */
  evidence_floors: number[];
  /** Pictures of one channel and of the picture's size that the network takes too, such as a mask. */
  maps: string[];
  /** What fills a map that is not given, 0..1. */
  map_defaults: number[];
  /** Further inputs, one number for all of the picture, such as a noise level; what each is where it is not given, and
   * the least and the most that it may be. */
  numbers: string[];
  number_defaults: number[];
  number_ranges: [number, number][];
  /** No field of the file: whether its statistics graph takes one window at a time. */
  one_window?: boolean;
}

/** What may be mended, and how far: numbers for the router, and the share of the result in what comes out. */
export interface Steering {
  permissions: Float32Array;
  blend: number;
}

/** By name, each a number 0..1 for every pixel, or a picture as large as the one that is restored. */
export type Maps = Record<string, number | Picture>;

/** The model file is not one, or contradicts itself or its other half. */
export class ModelError extends Error {}

/** The metadata_props of an ONNX file. Throws ModelError. */
export function readMetadata(bytes: Uint8Array): Map<string, string>;
export function readSpec(metadata: Map<string, string>): ModelSpec;
/** The spec of a tile graph and its router or statistics graph, or of a whole graph. Throws ModelError. */
export function specOf(graph: Uint8Array, second?: Uint8Array): ModelSpec;
/**
 * The files beside an ONNX file that hold weights of it, by name, each with its SHA-1 where the graph says that of it, or
 * "": what onnxruntime takes as `externalData`. Throws ModelError.
 */
export function weightsOf(bytes: Uint8Array): Map<string, string>;
/** Which graph a tile graph's model needs beside it; undefined for a whole graph. */
export function secondOf(spec: ModelSpec): "router" | "statistics" | undefined;

export type Tensors = Record<string, [data: Float32Array, dims: number[]]>;
export type Outputs = Record<string, { data: unknown; dims: readonly number[] }>;

/**
 * Restores a picture with the graphs that `run` runs; `pause` is awaited between tiles and throws to stop. A whole
 * graph is run under the name "tile".
 */
export function restore<S extends Samples>(
  image: Picture<S>,
  spec: ModelSpec,
  run: (graph: "tile" | "router" | "statistics", feeds: Tensors) => Promise<Outputs>,
  pause: (done: number, total: number) => void | Promise<void>,
  steering?: Steering,
  statistics?: "sampled" | "exact",
  given?: { maps?: Maps; numbers?: Record<string, number> },
): Promise<{
  data: S;
  width: number;
  height: number;
  posterior: Float32Array;
  gate: Float32Array;
  evidence: Float32Array;
}>;

/** Throws RangeError for unknown words, and for numbers outside 0..1. */
export function steer(
  spec: ModelSpec,
  fix?: string | string[],
  strength?: number | string | Record<string, number>,
): Steering;
