// node page.mjs: the page's side with a worker of ours: everything settles, URLs are what they should be, bad arguments
// are refused before anything is opened.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ModelError, Restorer } from "../src/index.js";
import { check, finish, throws } from "./support.mjs";

const golden = join(import.meta.dirname, "../../../tests/golden");
const { specOf } = await import("../src/restore.js");

/** Answers "open"; a restoration is answered by what the test says. */
class FakeWorker {
  static last;
  static onRestore = () => {};
  constructor(url, options) {
    Object.assign(this, { url, options, messages: [], terminated: false });
    FakeWorker.last = this;
  }
  postMessage(message, transfer) {
    if (this.terminated) throw new Error("posted to a worker that has ended");
    structuredClone(message, { transfer });
    this.messages.push(message);
    queueMicrotask(() => {
      if (this.terminated) return;
      if (message.action === "open") this.open(message);
      else if (message.action === "restore") FakeWorker.onRestore(this, message);
    });
  }
  open({ id, graph, second }) {
    try {
      this.answer({ id, result: { spec: specOf(graph, second) } });
    } catch ({ name, message }) {
      this.answer({ id, error: { name, message } });
    }
  }
  answer(data) {
    this.onmessage({ data });
  }
  terminate() {
    this.terminated = true;
  }
}
globalThis.Worker = FakeWorker;

/** An ONNX file with one more tensor, whose values are in another file. */
function weightsIn(name, graph, checksum = "") {
  const field = (number, bytes) => [number * 8 + 2, ...varint(bytes.length), ...bytes];
  const entry = (key, value) => field(13, [...field(1, Buffer.from(key)), ...field(2, Buffer.from(value))]);
  const place = { location: name, offset: "0", length: "4", checksum };
  const tensor = Object.entries(place).flatMap(([key, value]) => entry(key, value));
  return new Uint8Array([...graph, ...field(7, field(5, tensor))]); // protobuf merges the two graphs
}

function varint(value) {
  return value < 128 ? [value] : [(value % 128) + 128, ...varint(Math.floor(value / 128))];
}

let asked = [];
let missing = () => false;
let shared = {}; // files that stand in for those of the golden folder
globalThis.fetch = async (url) => {
  const { pathname, search } = new URL(url);
  asked.push(pathname.split("/").pop() + search);
  const status = missing(pathname) || 200;
  const name = pathname.split("/").pop();
  const there = shared[name] ?? (name.endsWith(".data") ? new Uint8Array(16) : undefined);
  const bytes = status === 200 ? (there ?? (await readFile(join(golden, name)))) : new Uint8Array();
  return { ok: status === 200, status, arrayBuffer: async () => new Uint8Array(bytes).buffer };
};
const url = (name) => `https://photos.example/models/${name}`;
const opened = async (model, options) => {
  asked = [];
  return Restorer.open(model, { backend: "wasm", ...options });
};
const photo = () => ({ data: new Uint8ClampedArray(4 * 4 * 4), width: 4, height: 4 });
/** What became of a promise within a while. */
const settled = (promise) =>
  Promise.race([
    promise.then(
      () => "resolved",
      (error) => error,
    ),
    new Promise((resolve) => setTimeout(resolve, 500, "pending")),
  ]);

// --- URLs
let restorer = await opened(url("standin.onnx"));
check(String(asked) === "standin.tile.onnx,standin.router.onnx", `asked for ${asked}`);
check(restorer.spec.graph === "tile" && restorer.spec.clusters.length === 2, "the spec");
await opened(url("standin.onnx?v=3"));
check(String(asked) === "standin.tile.onnx?v=3,standin.router.onnx?v=3", `asked for ${asked}`);
await opened(url("standin.tile.onnx?a=b.onnx&sig=%2F"));
check(
  String(asked) === "standin.tile.onnx?a=b.onnx&sig=%2F,standin.router.onnx?a=b.onnx&sig=%2F",
  `asked for ${asked}`,
);
await opened(new URL(url("standin.onnx#fragment")));
check(String(asked) === "standin.tile.onnx,standin.router.onnx", `asked for ${asked}`);
missing = (path) => (path.includes("int8") && 404) || (path.includes("router") && 404);
await throws(Error, "nothing is there", () => opened(url("standin.int8.onnx")));
check(String(asked) === "standin.int8.tile.onnx,standin.router.onnx,standin.int8.onnx", `asked for ${asked}`);
for (const status of [403, 404, 410]) {
  missing = (path) => (path.includes(".tile.") || path.includes(".router.")) && status;
  restorer = await opened(url("standin.onnx?v=1"));
  check(restorer.spec.graph === "whole" && asked.at(-1) === "standin.onnx?v=1", `a whole graph alone: ${asked}`);
}
missing = (path) => /\.(router|statistics)\./.test(path) && 404;
restorer = await opened(url("standin.onnx?v=2"));
check(restorer.spec.graph === "whole", "a tile graph without its router is left");
check(
  String(asked) === "standin.tile.onnx?v=2,standin.router.onnx?v=2,standin.statistics.onnx?v=2,standin.onnx?v=2",
  `asked for ${asked}`,
);
missing = () => false;
// Weights in a file beside the graphs: fetched once, from there, with the query; refused where the name leads elsewhere.
const data = "standin.onnx.data";
const tile = await readFile(join(golden, "standin.tile.onnx"));
const router = await readFile(join(golden, "standin.router.onnx"));
shared = { "standin.tile.onnx": weightsIn(data, tile), "standin.router.onnx": weightsIn(data, router) };
await opened(url("standin.onnx?v=4"));
check(String(asked) === `standin.tile.onnx?v=4,standin.router.onnx?v=4,${data}?v=4`, `asked for ${asked}`);
check(FakeWorker.last.messages[0].weights.map(({ path, data }) => path + data.length) == `${data}16`, "the weights are handed to the worker");
for (const name of ["../secret.data", "..", "", "/etc/passwd", "https://elsewhere.example/x", "a?b", "a\\b", "a\nb"]) {
  shared = { "standin.tile.onnx": weightsIn(name, tile) };
  await throws(ModelError, `weights in ${name}`, () => opened(url("standin.onnx")));
  check(String(asked) === "standin.tile.onnx,standin.router.onnx", `nothing else is asked for: ${asked}`);
}
shared = {};
const outside = weightsIn(data, await readFile(join(golden, "standin.onnx")));
await throws(TypeError, "bytes without their weights", () => opened({ graph: outside }));
await opened({ graph: outside, weights: { [data]: new Uint8Array(8) } });
check(FakeWorker.last.messages[0].weights[0].data.length === 8, "weights as bytes");
const summed = weightsIn(data, tile, "0".repeat(40));
await throws(ModelError, "weights of another export", () =>
  opened({ graph: summed, router, weights: { [data]: new Uint8Array(8) } }),
);
const sum = createHash("sha1").update(new Uint8Array(8)).digest("hex");
await opened({ graph: weightsIn(data, tile, sum), router, weights: { [data]: new Uint8Array(8) } });
missing = () => 500;
await throws(Error, "a server's error", () => opened(url("standin.onnx")));
missing = () => false;
const bytes = await readFile(join(golden, "standin.onnx"));
restorer = await opened({ graph: bytes });
check(restorer.spec.graph === "whole" && bytes.length > 0, "bytes, which stay the caller's");

// --- what is refused
for (const threads of [0, -3, 1.5, NaN, "2", null])
  await throws(RangeError, `threads ${threads}`, () => opened(url("standin.onnx"), { threads }));
check(asked.length === 0, "refused before anything is fetched");
await throws(RangeError, "backend", () => opened(url("standin.onnx"), { backend: "abacus" }));
for (const model of [null, undefined, 7, {}, { router: bytes }, { graph: 7 }])
  await throws(TypeError, `model ${JSON.stringify(model)?.slice(0, 20)}`, () => opened(model));
const error = await throws(ModelError, "a router alone", async () =>
  opened({ graph: await readFile(join(golden, "standin.router.onnx")) }),
);
check(error.name === "ModelError" && FakeWorker.last.terminated, "the worker of a refused model is ended");
restorer = await opened(url("standin.onnx"), { threads: 4 });
check(restorer.threads === 1, "one thread where the page is not isolated");
for (const image of [null, undefined, {}, { width: 4, height: 4 }, { data: [1], width: 1, height: 1 }])
  await throws(TypeError, `image ${JSON.stringify(image)}`, () => restorer.restore(image));
for (const image of [
  { ...photo(), width: 5 },
  { ...photo(), width: 0 },
  { ...photo(), height: 2.5 },
  { ...photo(), data: new Uint8Array(0) },
])
  await throws(RangeError, `image ${JSON.stringify(image).slice(0, 40)}`, () => restorer.restore(image));

// --- everything settles
const routing = { posterior: new Float32Array(7), gate: new Float32Array(7) };
const made = { data: new Uint8ClampedArray(64), width: 4, height: 4, ...routing };
FakeWorker.onRestore = (worker, { id }) => {
  worker.answer({ id, done: 0, total: 1 });
  worker.answer({ id, result: made });
};
const told = [];
const mine = photo();
const result = await restorer.restore(mine, { onProgress: (done, total) => told.push([done, total]) });
check(result.width === 4 && result.data.length === 64 && String(told) === "0,1", "a restoration");
check(mine.data.length === 64, "the picture stays the caller's");
FakeWorker.onRestore = (worker, { id }) => worker.answer({ id, error: { name: "RangeError", message: "no" } });
await throws(RangeError, "an error keeps its kind", () => restorer.restore(photo()));
FakeWorker.onRestore = (worker, { id }) => worker.answer({ id, error: { name: "AbortError", message: "stopped" } });
check((await settled(restorer.restore(photo()))).name === "AbortError", "an abort is one");
FakeWorker.onRestore = () => {};
const stop = new AbortController();
const stopped = restorer.restore(photo(), { signal: stop.signal });
await Promise.resolve();
stop.abort();
check(FakeWorker.last.messages.at(-1).action === "cancel", "an abort is handed on");
check(
  (await settled(restorer.restore(photo(), { signal: stop.signal }))).name === "AbortError",
  "aborted before it began",
);
const waiting = restorer.restore(photo());
restorer.close();
for (const [promise, what] of [
  [waiting, "under way at close()"],
  [stopped, "another"],
  [restorer.restore(photo()), "after close()"],
])
  check(/closed/.test((await settled(promise)).message), what);
restorer.close();
check(FakeWorker.last.terminated, "close() ends the worker");
const after = new AbortController();
check((await settled(restorer.restore(photo(), { signal: after.signal }))) instanceof Error, "and again after close()");
after.abort();

for (const event of ["onerror", "onmessageerror"]) {
  restorer = await opened(url("standin.onnx"));
  const dying = restorer.restore(photo());
  FakeWorker.last[event]({ message: "out of memory" });
  check((await settled(dying)).message === "out of memory", `${event}: what waits is told`);
  check((await settled(restorer.restore(photo()))).message === "out of memory", `${event}: what comes later is told`);
  check(FakeWorker.last.terminated, `${event}: the worker is ended`);
}
restorer = await opened(url("standin.onnx"));
const detached = photo();
structuredClone(detached.data.buffer, { transfer: [detached.data.buffer] });
check((await settled(restorer.restore(detached))) instanceof Error, "a picture that was handed over already");
const faulty = { data: new Uint8ClampedArray(64), width: 4, height: 4 };
FakeWorker.last.postMessage = () => {
  throw new DOMException("it could not be cloned", "DataCloneError");
};
check((await settled(restorer.restore(faulty))).name === "DataCloneError", "what cannot be handed over");

finish();
