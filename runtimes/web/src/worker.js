// Runs in a worker: holds the sessions, restores one picture at a time, tells how far it is, and stops when told.
import * as ort from "onnxruntime-web/webgpu";
import { restore, secondOf, specOf } from "./restore.js";

let spec;
let sessions;
const cancelled = new Set();

/** Lets messages in. A promise alone would not: it is resumed before the next message is looked at. */
const breathe = () =>
  new Promise((resume) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resume();
    };
    port2.postMessage(null);
  });

const actions = {
  async open({ graph, second, weights, backend, threads, base }) {
    spec = specOf(graph, second);
    // onnxruntime-web's WebGPU script serves both back ends; of its two wasm files a page without WebGPU needs the small
    // one, which the script would not choose by itself.
    const wasm = `${base}ort-wasm-simd-threaded${backend === "webgpu" ? ".asyncify" : ""}`;
    ort.env.wasm.wasmPaths = { mjs: `${wasm}.mjs`, wasm: `${wasm}.wasm` };
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "fatal";
    const options = { executionProviders: [backend], externalData: weights };
    const open = (bytes) => ort.InferenceSession.create(bytes, options);
    sessions = { tile: await open(graph) };
    if (second) sessions[secondOf(spec)] = await open(second);
    return { spec };
  },

  async restore({ id, image, steering, statistics, given }) {
    const run = async (graph, feeds) => {
      const tensors = {};
      for (const [name, [data, dims]] of Object.entries(feeds)) tensors[name] = new ort.Tensor("float32", data, dims);
      return sessions[graph].run(tensors);
    };
    const pause = async (done, total) => {
      postMessage({ id, done, total });
      await breathe();
      if (cancelled.has(id)) throw new DOMException("the restoration was cancelled", "AbortError");
    };
    if (!(image instanceof ImageBitmap)) return restore(image, spec, run, pause, steering, statistics, given);
    const { width, height } = image;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    image.close();
    const pixels = context.getImageData(0, 0, width, height);
    const { data, ...told } = await restore(pixels, spec, run, pause, steering, statistics, given);
    return { bitmap: await createImageBitmap(new ImageData(data, told.width, told.height)), ...told };
  },
};

// Pictures wait for each other: a session runs one at a time.
let queue = Promise.resolve();

onmessage = ({ data: message }) => {
  if (message.action === "cancel") {
    cancelled.add(message.id);
    return;
  }
  queue = queue.then(async () => {
    try {
      const result = await actions[message.action](message);
      postMessage({ id: message.id, result }, [result.data?.buffer, result.bitmap].filter(Boolean));
    } catch (error) {
      postMessage({ id: message.id, error: { name: error.name, message: error.message } });
    }
    cancelled.delete(message.id);
  });
};
