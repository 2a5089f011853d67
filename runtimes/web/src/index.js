// clusir in a page:
//
//   import { Restorer } from "clusir";
//   const restorer = await Restorer.open("models/tiny.onnx");
//   const { data } = await restorer.restore(imageData, { onProgress: (done, total) => console.log(done, total) });
//
// The work is done in a worker, so the page stays responsive; nothing leaves the page.

import { channelsOf, mapsOf, numbersOf } from "./pixels.js";
import { ModelError, weightsOf } from "./spec.js";
import { hints, steer } from "./steering.js";

export { ModelError };

const ERRORS = { ModelError, TypeError, RangeError };
const NOT_THERE = [403, 404, 410]; // some stores answer 403 for what is not there
let last = 0;

// Kinds are told by name, not by instanceof: another page has its own classes.
const kindOf = (value) => Object.prototype.toString.call(value).slice(8, -1);
const isUrl = (value) => typeof value === "string" || kindOf(value) === "URL";

async function bytesOf(source) {
  // A copy: the caller's buffer must survive the transfer.
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength).slice();
  if (kindOf(source) === "ArrayBuffer") return new Uint8Array(source.slice(0));
  if (!isUrl(source)) throw new TypeError("a model file is a URL or bytes");
  const bytes = await fetched(source);
  if (!bytes) throw new Error(`${source}: the server has no such file`);
  return bytes;
}

/** The file behind a URL; undefined where it is not there. */
async function fetched(url) {
  const response = await fetch(url);
  if (NOT_THERE.includes(response.status)) return undefined;
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** The URL of a file beside a model's: its query stays (versions, signatures). */
function beside(url, rename) {
  const other = new URL(url);
  other.pathname = rename(other.pathname.replace(/\.onnx$/, "").replace(/\.tile$/, ""));
  return other;
}

/** {graph, second, weights} as bytes: the two graphs of a model or one, and what they keep their weights in. */
async function filesOf(model) {
  const absolute = (url) => new URL(url, globalThis.location?.href);
  if (isUrl(model)) {
    const files = await graphsAt(absolute(model));
    return { ...files, weights: await weightsFor(files, absolute(model), {}) };
  }
  if (model === null || typeof model !== "object" || !model.graph)
    throw new TypeError("a model is the URL of its .onnx file, or {graph, router}, or {graph, statistics}");
  const beside = model.router ?? model.statistics;
  const [graph, second] = await Promise.all([bytesOf(model.graph), beside && bytesOf(beside)]);
  const at = isUrl(model.graph) ? absolute(model.graph) : undefined;
  return { graph, second, weights: await weightsFor({ graph, second }, at, model.weights ?? {}) };
}

/** What the graphs keep their weights in, as onnxruntime takes it: as given, or from beside the URL. */
async function weightsFor({ graph, second }, url, given) {
  const named = new Map([graph, second].flatMap((bytes) => (bytes ? [...weightsOf(bytes)] : [])));
  const load = async ([path, checksum]) => {
    const source = given[path] ?? (url && beside(url, (stem) => stem.replace(/[^/]*$/, encodeURIComponent(path))));
    if (!source) throw new TypeError(`the graph keeps its weights in ${path}: give weights: {"${path}": its URL or bytes}`);
    const data = await bytesOf(source);
    // Pages without TLS have no crypto.subtle.
    const digest = checksum && (await globalThis.crypto?.subtle?.digest("SHA-1", data));
    const found = digest && Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found && found !== checksum) throw new ModelError(`${path} holds the weights of another export (its SHA-1 differs)`);
    return { path, data };
  };
  return Promise.all([...named].map(load));
}

/** {graph, second}: the two graphs beside a model's URL, or where they are not there the file itself. */
async function graphsAt(url) {
  if (!url.pathname.endsWith(".onnx")) return { graph: await bytesOf(url), second: undefined }; // a blob, a query
  const named = (kind) => fetched(beside(url, (stem) => `${stem.replace(/\.(int8|fp16|fp32)$/, "")}.${kind}.onnx`));
  const [graph, router] = await Promise.all([fetched(beside(url, (stem) => `${stem}.tile.onnx`)), named("router")]);
  const second = router ?? (graph && (await named("statistics")));
  return graph && second ? { graph, second } : { graph: await bytesOf(url), second: undefined };
}

/** The threads that are asked for, as many as the page may have. Throws RangeError for what is no number of them. */
function threadsOf(wanted) {
  const most = globalThis.crossOriginIsolated ? Math.min(globalThis.navigator?.hardwareConcurrency || 1, 8) : 1;
  if (wanted === undefined) return most;
  if (!Number.isInteger(wanted) || wanted < 1)
    throw new RangeError(`threads ${wanted} is not a whole number from 1 on`);
  return Math.min(wanted, most);
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
  #connection;

  /** Use {@link Restorer.open}. */
  constructor(connection, spec, backend, threads) {
    this.#connection = connection;
    /** What the model says of itself; the fields are named as in Python's ModelSpec. */
    this.spec = spec;
    /** "wasm" or "webgpu": the one that runs. */
    this.backend = backend;
    this.threads = threads;
  }

  /**
   * Opens a model: the URL of NAME.onnx, or {graph, router} or {graph, statistics} as URLs or bytes. For a URL,
   * NAME.tile.onnx and NAME.router.onnx (or NAME.statistics.onnx) are fetched from beside it, with its query; where they
   * are not there, NAME.onnx itself. What graphs keep their weights in (NAME.onnx.data) is fetched from beside them too,
   * or taken from `weights`: {name: URL or bytes}.
   * @param options backend "auto" | "wasm" | "webgpu"; threads (needs a cross-origin isolated page, else 1); base:
   * folder URL of the built files and of onnxruntime-web's .wasm (default: where this script is)
   */
  static async open(model, { backend = "auto", threads, base } = {}) {
    const folder = new URL(base ?? "./", import.meta.url).href;
    const count = threadsOf(threads);
    const chosen = await chooseBackend(backend);
    const { graph, second, weights } = await filesOf(model);
    const connection = new Connection(new URL("worker.js", folder));
    try {
      const message = { action: "open", graph, second, weights, backend: chosen, threads: count, base: folder };
      const { spec } = await connection.send(message).promise;
      return new Restorer(connection, spec, chosen, count);
    } catch (error) {
      connection.close(error);
      throw error;
    }
  }

  /**
   * Restores a picture: ImageData, or {data, width, height} with Uint8, Uint16 or Float32 samples of 1 to 4 channels:
   * grey, grey and alpha, RGB, RGB and alpha. Or an ImageBitmap, which is taken over: its pixels are then read and
   * written in the worker, and the page, which only shows the bitmap that comes back, touches none.
   *
   * `fix` says which degradations may be mended: nothing or "auto", "all", or families ("noise,jpeg" or a list);
   * `strength` how far: 0..1, "0.8,noise=0.6" or {family: strength}. Other words and numbers are RangeErrors.
   * `statistics`: of a network that pools over the whole picture, "sampled" (default) pools windows, "exact" all of it.
   * `maps`: of a network that takes some (`spec.maps`, such as a mask) numbers 0..1, or pictures of the same size.
   * `numbers`: of a network that takes some (`spec.numbers`, such as a noise level), each within `spec.number_ranges`.
   *
   * Settles in every case: it is rejected where the restorer was closed, its worker died, or the picture is none. An
   * abort after the last tile changes nothing.
   * @returns {Promise<{data, width, height, posterior, gate, evidence, hints}>} `data` of the same type, alpha kept; for an ImageBitmap
   * `bitmap` instead
   */
  async restore(picture, { onProgress, signal, fix, strength, statistics, maps = {}, numbers = {} } = {}) {
    signal?.throwIfAborted();
    const steering = steer(this.spec, fix, strength);
    const bitmap = kindOf(picture) === "ImageBitmap";
    if (!bitmap) channelsOf(picture, this.spec);
    else if (!picture.width) throw new RangeError("the bitmap was closed or handed over; it has no pixels");
    const { width, height } = picture;
    mapsOf(maps, this.spec, picture);
    numbersOf(numbers, this.spec);
    const image = bitmap ? picture : { data: picture.data.slice(), width, height };
    const transfer = [bitmap ? picture : image.data.buffer];
    const message = { action: "restore", image, steering, statistics, given: { maps, numbers } };
    const { id, promise } = this.#connection.send(message, transfer, onProgress);
    const stop = () => this.#connection.post({ action: "cancel", id });
    signal?.addEventListener("abort", stop, { once: true });
    try {
      const restored = await promise;
      const left = restored.evidence?.length ? hints(restored.evidence, steering.permissions, this.spec) : [];
      return { ...restored, hints: left };
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Ends the worker; a restoration under way fails, and so does every later one. */
  close() {
    this.#connection.close(new Error("the restorer was closed"));
  }
}

/** A worker and who waits for its answers. Once it has ended, everything that waits or will ask is told why. */
class Connection {
  #waiting = new Map();
  #worker;
  #ended; // the error that says why

  constructor(url) {
    this.#worker = new Worker(url, { type: "module" });
    this.#worker.onmessage = ({ data: message }) => this.#settle(message);
    const died = (event) => this.close(new Error(event.message || "the worker could not be started, or stopped"));
    this.#worker.onerror = died;
    this.#worker.onmessageerror = died;
  }

  send(message, transfer = [], onProgress = undefined) {
    const id = ++last;
    const promise = new Promise((resolve, reject) => {
      if (this.#ended) throw this.#ended;
      this.#worker.postMessage({ ...message, id }, transfer); // throws where something cannot be handed over
      this.#waiting.set(id, { resolve, reject, onProgress });
    });
    return { id, promise };
  }

  /** A message that is not answered. */
  post(message) {
    if (!this.#ended) this.#worker.postMessage(message);
  }

  close(error) {
    if (this.#ended) return;
    this.#ended = error;
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  #settle({ id, done, total, result, error }) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    if (result || error) this.#waiting.delete(id);
    if (result) waiting.resolve(result);
    else if (error) waiting.reject(revived(error));
    else this.#tell(waiting, done, total);
  }

  /** An error of the listener is the listener's own: it is reported, and the restoration goes on. */
  #tell({ onProgress }, done, total) {
    try {
      onProgress?.(done, total);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }
}

/** An error of the worker as one of the page, of the same kind. */
function revived({ name, message }) {
  if (name === "AbortError") return new DOMException(message, name);
  return new (ERRORS[name] ?? Error)(message);
}
