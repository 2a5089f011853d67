import type { Picture, Samples } from "./restore.js";

/** What is used of an onnxruntime InferenceSession. */
export interface Session {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(feeds: Record<string, any>, fetches?: readonly string[]): Promise<Record<string, any>>;
}

export interface WithOptions {
  /** The Tensor class of the onnxruntime that the session is from. */
  Tensor: new (type: "float32", data: Float32Array, dims: number[]) => unknown;
  /** Side of a tile, px; default: the model's one size, else 256. */
  tile?: number;
  /** Tiles overlap by twice this, px; their outermost quarter of it is never used. A model that looks no farther than that
   * quarter gives the same picture as in one piece. Default 32, or a quarter of the tile. */
  halo?: number;
  /** Sides must be a multiple of this. */
  multipleOf?: number;
  /** Which output is the picture; default: the first. */
  output?: string;
  /** How many times as large the answer is; default: one black tile is run to see. */
  scale?: number;
  /** 0..1: the share of the answer in what comes out. */
  strength?: number;
  /** Before the first tile (done 0) and after every tile. */
  onProgress?: (done: number, total: number) => void;
  /** After the last tile an abort changes nothing. */
  signal?: AbortSignal;
}

/** Restores or enlarges a picture of any size, in blended tiles, with a model of one picture in and one out. */
export function restoreWith<S extends Samples>(session: Session, image: Picture<S>, options: WithOptions): Promise<Picture<S>>;
