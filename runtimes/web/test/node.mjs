// node node.mjs GOLDEN_FOLDER: the golden cases, and hostile input, without a browser. onnxruntime-web's wasm runs in
// Node too.
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { ModelError, restore, specOf } from "../src/restore.js";
import { runGolden } from "./golden.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";
const folder = pathToFileURL(join(resolve(process.argv[2]), "/"));
const read = (url) => readFile(url).then((bytes) => new Uint8Array(bytes));

async function open(url, pause = async () => {}) {
  const stem = url.href.replace(/\.onnx$/, "");
  const files = { tile: await read(new URL(`${stem}.tile.onnx`)), router: await read(new URL(`${stem}.router.onnx`)) };
  const spec = specOf(files.tile, files.router);
  const sessions = {};
  for (const [graph, bytes] of Object.entries(files)) sessions[graph] = await ort.InferenceSession.create(bytes);
  const run = (graph, feeds) => {
    const tensors = Object.entries(feeds).map(([name, [data, dims]]) => [name, new ort.Tensor("float32", data, dims)]);
    return sessions[graph].run(Object.fromEntries(tensors));
  };
  return { spec, files, restore: (image) => restore(image, spec, run, pause) };
}

let passed = 0;
let failed = 0;
const check = (holds, what) => {
  if (holds) passed++;
  else failed++;
  if (!holds) console.log(`FAILED: ${what}`);
};
const throws = async (kind, what, action) => {
  const error = await Promise.resolve()
    .then(action)
    .then(
      () => null,
      (thrown) => thrown,
    );
  check(error instanceof kind, `${what}: ${error}`);
};

for (const { name, difference, failures } of await runGolden(folder, read, open)) {
  console.log(`${name}: max abs difference ${difference.toPrecision(3)}`);
  check(failures.length === 0, `${name}: ${failures.join("; ")}`);
}

const { spec, files, restore: run } = await open(new URL("standin.onnx", folder));
const { tile, router } = files;
await throws(ModelError, "a tile graph alone", () => specOf(tile));
await throws(ModelError, "a router alone", () => specOf(router));
await throws(ModelError, "swapped graphs", () => specOf(router, tile));
await throws(ModelError, "no bytes", () => specOf(new Uint8Array(0), router));
for (let cut = 1; cut < tile.length; cut += 97)
  await throws(ModelError, `cut to ${cut}`, () => specOf(tile.slice(0, cut), router));
const lie = (from, to) => {
  const text = Buffer.from(tile).toString("latin1");
  if (!text.includes(from) || from.length !== to.length) throw new Error(`${from} is not in the model`);
  return new Uint8Array(Buffer.from(text.replace(from, to), "latin1"));
};
for (const [from, to] of [
  ['"tile"', '"tils"'],
  ["[4, 3]", "[4, 4]"],
  ["[4, 3]", "[4,-3]"],
  ['"NCHW"', '"NHWC"'],
  ["[0.0, 1.0]", "[1.0, 1.0]"],
]) {
  await throws(ModelError, `${from} -> ${to}`, () => specOf(lie(from, to), router));
}
const picture = (length, width, height) => ({ data: new Uint8Array(length), width, height });
await throws(RangeError, "no pixels", () => run(picture(0, 0, 0)));
await throws(RangeError, "a short array", () => run(picture(11, 2, 2)));
await throws(RangeError, "five channels", () => run(picture(20, 2, 2)));
await throws(TypeError, "an array of another type", () => run({ data: new Int8Array(12), width: 2, height: 2 }));
await throws(RangeError, "NaN", () => run({ data: new Float32Array(12).fill(NaN), width: 2, height: 2 }));
const stopper = await open(new URL("standin.onnx", folder), async (done) => {
  if (done === 2) throw new DOMException("stop", "AbortError");
});
await throws(DOMException, "cancelled", () => stopper.restore(picture(100 * 100 * 3, 100, 100)));
check(spec.cluster_labels[0][1] === "jpeg", "labels");

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
