/** Samples of interleaved pixels, RGB or RGB + alpha; integers span 0..1, floats are within 0..1. */
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
}

export interface RestoredBitmap {
  bitmap: ImageBitmap;
  width: number;
  height: number;
  posterior: Float32Array;
  gate: Float32Array;
}

export interface ModelSpec {
  name: string;
  precision: string;
  channels: number;
  tile_px: number;
  halo_px: number;
  clusters: number[];
  experts: number[];
  top_k: number;
  /** Length of the pooled statistics that tiles share; 0: each computes its own. */
  statistics: number;
  cluster_labels: string[][];
}

export interface OpenOptions {
  backend?: "auto" | "wasm" | "webgpu";
  threads?: number;
  base?: string;
}

export interface RestoreOptions {
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

type File = string | URL | ArrayBuffer | Uint8Array;

export class Restorer {
  static open(model: string | URL | { graph: File; router?: File }, options?: OpenOptions): Promise<Restorer>;
  readonly spec: ModelSpec;
  readonly backend: "wasm" | "webgpu";
  readonly threads: number;
  /** The bitmap is taken over; its pixels are read and written in the worker. */
  restore(image: ImageBitmap, options?: RestoreOptions): Promise<RestoredBitmap>;
  restore<S extends Samples>(image: Picture<S>, options?: RestoreOptions): Promise<Restored<S>>;
  close(): void;
}
