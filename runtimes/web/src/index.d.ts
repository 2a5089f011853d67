import { Maps, ModelError, ModelSpec, Picture, Restored, Samples } from "./restore.js";

export { Maps, ModelError, ModelSpec, Picture, Restored, Samples };

export interface RestoredBitmap {
  bitmap: ImageBitmap;
  width: number;
  height: number;
  /** See {@link Restored}. */
  posterior: Float32Array;
  gate: Float32Array;
  evidence: Float32Array;
  hints: Hint[];
}

/** A family of degradations with evidence that was left alone; text, for example, "perhaps hazy". */
export interface Hint {
  family: string;
  text: string;
}

export interface OpenOptions {
  /** "auto" (default): WebGPU where there is an adapter, else wasm. */
  backend?: "auto" | "wasm" | "webgpu";
  /** A whole number from 1 on; the page's most where it is larger. */
  threads?: number;
  /** Folder URL of the built files and of onnxruntime-web's .wasm; default: where this script is. */
  base?: string;
}

export interface RestoreOptions {
  /** Before the first tile (done 0) and after every tile. */
  onProgress?: (done: number, total: number) => void;
  /** After the last tile an abort changes nothing. */
  signal?: AbortSignal;
  /** Which degradations may be mended: nothing or "auto", "all", or families. Needs a model with families. */
  fix?: string | string[];
  /** How far: 0..1, "0.8,noise=0.6", or strengths by family, in which "" is the overall one. Strength 0 runs nothing. */
  strength?: number | string | Record<string, number>;
  /** Of a network that pools over the whole picture: "sampled" (default) pools windows of it, "exact" all of it. */
  statistics?: "sampled" | "exact";
  /** Of a network that takes some: a mask, a noise level for each pixel. */
  maps?: Maps;
  /** Of a network that takes some, such as a noise level: by name, within `spec.number_ranges`. */
  numbers?: Record<string, number>;
}

/** The URL of a file, or its bytes. */
export type ModelFile = string | URL | ArrayBuffer | Uint8Array;

export class Restorer {
  /**
   * Opens the URL of NAME.onnx (with NAME.tile.onnx and NAME.router.onnx or NAME.statistics.onnx beside it, where they
   * are there), or two graphs (or one whole graph) by URL or bytes. `weights`, by name: what graphs given as bytes keep
   * their weights in (NAME.onnx.data); beside a URL it is fetched. Rejects with ModelError where a file is not a model.
   */
  static open(
    model:
      | string
      | URL
      | { graph: ModelFile; router?: ModelFile; statistics?: ModelFile; weights?: Record<string, ModelFile> },
    options?: OpenOptions,
  ): Promise<Restorer>;
  /** Use {@link Restorer.open}. */
  private constructor();
  readonly spec: ModelSpec;
  readonly backend: "wasm" | "webgpu";
  readonly threads: number;
  /** The bitmap is taken over; its pixels are read and written in the worker. */
  restore(image: ImageBitmap, options?: RestoreOptions): Promise<RestoredBitmap>;
  /** Rejects with TypeError or RangeError where the image is no picture, and always after {@link Restorer.close}. */
  restore<S extends Samples>(image: Picture<S>, options?: RestoreOptions): Promise<Restored<S> & { hints: Hint[] }>;
  close(): void;
}
