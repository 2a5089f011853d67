// clusir in a page:
//
//   import { Restorer } from "clusir";
//   const restorer = await Restorer.open("models/tiny.onnx");
//   const { data } = await restorer.restore(imageData, { onProgress: (done, total) => console.log(done, total) });
//
// The work is done in a worker, so the page stays responsive; nothing leaves the page.

const WAITING = new Map();
let last = 0;

const kindOf = (value) => Object.prototype.toString.call(value).slice(8, -1);

async function bytesOf(source) {
  // A copy: the caller's buffer must survive the transfer. Kinds are told by name: another page has its own classes.
  if (ArrayBuffer.isView(source))
    return new Uint8Array(source.buffer, source.byteOffset, source.byteLength).slice();
  if (kindOf(source) === "ArrayBuffer") return new Uint8Array(source.slice(0));
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source}: the server answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function chooseBackend(wanted) {
  if (!["auto", "wasm", "webgpu"].includes(wanted))
    throw new RangeError(`backend '${wanted}' is not auto, wasm or webgpu`);
  if (wanted === "wasm") return "wasm";
  const adapter = await globalThis.navigator?.gpu?.requestAdapter().catch(() => null);
  if (adapter) return "webgpu";
  if (wanted === "webgpu") throw new Error("this browser offers no WebGPU adapter; use backend 'wasm' or 'auto'");
  return "wasm";
}

/** An opened model. */
export class Restorer {
  #worker;

  /** Use {@link Restorer.open}. */
  constructor(worker, spec, backend, threads) {
    this.#worker = worker;
    /** What the model says of itself; the fields are named as in Python's ModelSpec. */
    this.spec = spec;
    /** "wasm" or "webgpu": the one that runs. */
    this.backend = backend;
    this.threads = threads;
  }

  /**
   * Opens a model: the URL of NAME.onnx, or {graph, router} as URLs or bytes. For a URL, NAME.tile.onnx and
   * NAME.router.onnx are fetched from beside it.
   * @param options backend "auto" | "wasm" | "webgpu"; threads (needs a cross-origin isolated page, else 1); base:
   * folder URL of the built files and of onnxruntime-web's .wasm (default: where this script is)
   */
  static async open(model, { backend = "auto", threads, base } = {}) {
    const folder = new URL(base ?? "./", import.meta.url).href;
    const chosen = await chooseBackend(backend);
    const most = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
    const count = Math.min(threads ?? most, most);
    const named = typeof model === "string" || kindOf(model) === "URL";
    const url = named ? new URL(model, globalThis.location?.href).href : "";
    const stem = url.replace(/(\.tile)?\.onnx$/, "");
    const files = named
      ? { graph: `${stem}.tile.onnx`, router: `${stem.replace(/\.(int8|fp16|fp32)$/, "")}.router.onnx` }
      : model;
    const [graph, router] = await Promise.all([bytesOf(files.graph), files.router && bytesOf(files.router)]);
    const worker = new Worker(new URL("worker.js", folder), { type: "module" });
    worker.onmessage = ({ data: message }) => settle(message);
    worker.onerror = (event) => failAll(worker, new Error(event.message || "the worker could not be started"));
    try {
      const { spec } = await ask(worker, {
        action: "open",
        graph,
        router,
        backend: chosen,
        threads: count,
        base: folder,
      });
      return new Restorer(worker, spec, chosen, count);
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  /**
   * Restores a picture: ImageData, or {data, width, height} with Uint8, Uint16 or Float32 samples, RGB or RGB + alpha.
   * Or an ImageBitmap, which is taken over: its pixels are then read and written in the worker, and the page, which
   * only shows the bitmap that comes back, touches none.
   * @returns {Promise<{data, width, height, posterior, gate}>} `data` of the same type, alpha kept; for an ImageBitmap
   * `bitmap` instead
   */
  async restore(picture, { onProgress, signal } = {}) {
    signal?.throwIfAborted();
    const { width, height } = picture;
    const bitmap = kindOf(picture) === "ImageBitmap";
    const image = bitmap ? picture : { data: picture.data.slice(), width, height };
    const transfer = [bitmap ? picture : image.data.buffer];
    const { id, promise } = send(this.#worker, { action: "restore", image }, transfer, onProgress);
    const stop = () => this.#worker.postMessage({ action: "cancel", id });
    signal?.addEventListener("abort", stop, { once: true });
    try {
      return { ...(await promise), width, height };
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Ends the worker; a restoration under way fails. */
  close() {
    this.#worker.terminate();
    failAll(this.#worker, new Error("the restorer was closed"));
  }
}

function send(worker, message, transfer, onProgress) {
  const id = ++last;
  const promise = new Promise((resolve, reject) => WAITING.set(id, { worker, resolve, reject, onProgress }));
  worker.postMessage({ ...message, id }, transfer);
  return { id, promise };
}

const ask = (worker, message) => send(worker, message, []).promise;

function settle({ id, done, total, result, error }) {
  const waiting = WAITING.get(id);
  if (!waiting) return;
  if (result || error) WAITING.delete(id);
  if (result) waiting.resolve(result);
  else if (error)
    waiting.reject(
      error.name === "AbortError" ? new DOMException(error.message, error.name) : new Error(error.message),
    );
  else waiting.onProgress?.(done, total);
}

function failAll(worker, error) {
  for (const [id, waiting] of WAITING) {
    if (waiting.worker !== worker) continue;
    WAITING.delete(id);
    waiting.reject(error);
  }
}
