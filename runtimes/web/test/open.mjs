// A model opened in Node, with onnxruntime-web's wasm, and files.
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { restore, secondOf, specOf, steer, weightsOf } from "../src/restore.js";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

export const read = (url) => readFile(url).then((bytes) => new Uint8Array(bytes));

/** A session of a graph, with what it keeps its weights in from beside the URL. */
export async function sessionOf(bytes, url) {
  const names = [...weightsOf(bytes).keys()];
  const externalData = await Promise.all(names.map(async (path) => ({ path, data: await read(new URL(path, url)) })));
  return ort.InferenceSession.create(bytes, { externalData });
}

/** The model at the URL of NAME.onnx, by NAME.tile.onnx and the graph beside it where they are there. */
export async function open(url, pause = async () => {}) {
  const stem = url.href.replace(/\.onnx$/, "");
  const there = (end) =>
    read(new URL(`${stem}.${end}.onnx`)).catch((error) =>
      error.code === "ENOENT" ? undefined : Promise.reject(error),
    );
  const tile = await there("tile");
  const router = tile && (await there("router"));
  const second = router ?? (tile && (await there("statistics")));
  const spec = specOf(tile ?? (await read(url)), second);
  const files = { tile: tile ?? (await read(url)), ...(second && { [secondOf(spec)]: second }) };
  const sessions = {};
  for (const [graph, bytes] of Object.entries(files)) sessions[graph] = await sessionOf(bytes, url);
  const run = (graph, feeds) => {
    const tensors = Object.entries(feeds).map(([name, [data, dims]]) => [name, new ort.Tensor("float32", data, dims)]);
    return sessions[graph].run(Object.fromEntries(tensors));
  };
  const restored = async (image, { fix, strength, statistics, maps, numbers } = {}) =>
    restore(image, spec, run, pause, steer(spec, fix, strength), statistics, { maps, numbers });
  return { spec, files, restore: restored };
}
