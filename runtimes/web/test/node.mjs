// node node.mjs GOLDEN_FOLDER: the golden cases, and hostile input, without a browser. onnxruntime-web's wasm runs in
// Node too.
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-web";
import { ModelError, restore, specOf, steer } from "../src/restore.js";
import { runGolden } from "./golden.mjs";
import { open, read, sessionOf } from "./open.mjs";
import { check, finish, throws } from "./support.mjs";

const folder = pathToFileURL(join(resolve(process.argv[2]), "/"));

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
  ["[0.0, 1.0]", "[0.0, 2.0]"], // not the router's
  ["0".repeat(64), "1".repeat(64)], // another checkpoint
]) {
  await throws(ModelError, `${from} -> ${to}`, () => specOf(lie(from, to), router));
}
const picture = (length, width, height) => ({ data: new Uint8Array(length), width, height });
await throws(RangeError, "no pixels", () => run(picture(0, 0, 0)));
await throws(RangeError, "a short array", () => run(picture(11, 2, 2)));
await throws(RangeError, "five channels", () => run(picture(20, 2, 2)));
await throws(TypeError, "an array of another type", () => run({ data: new Int8Array(12), width: 2, height: 2 }));
for (const wrong of [NaN, Infinity, -1, 1.0000001]) {
  for (const [channels, at] of [
    [3, 4],
    [4, 7],
    [2, 3],
    [1, 2],
  ]) {
    const data = new Float32Array(4 * channels).fill(0.5);
    data[at] = wrong;
    await throws(RangeError, `${wrong} at ${at} of ${channels}`, () => run({ data, width: 2, height: 2 }));
  }
}
for (const nothing of [
  null,
  undefined,
  7,
  "photo.png",
  {},
  { width: 2, height: 2 },
  { data: [1, 2, 3], width: 1, height: 1 },
])
  await throws(TypeError, `no picture: ${JSON.stringify(nothing)}`, () => run(nothing));
for (const [width, height] of [
  [2.5, 2],
  [-2, -2],
  [NaN, 1],
  ["2", "2"],
])
  await throws(RangeError, `${width} x ${height}`, () => run(picture(12, width, height)));
const stopper = await open(new URL("standin.onnx", folder), async (done) => {
  if (done === 2) throw new DOMException("stop", "AbortError");
});
await throws(DOMException, "cancelled", () => stopper.restore(picture(100 * 100 * 3, 100, 100)));
// Told to stop once the router has run: before the first tile.
const told = [];
const early = await open(new URL("standin.onnx", folder), async (done, total) => {
  told.push(done);
  if (told.length === 2) throw new DOMException("stop", "AbortError");
});
await throws(DOMException, "cancelled after the router", () => early.restore(picture(100 * 100 * 3, 100, 100)));
check(String(told) === "0,0", `told ${told}`);
// After the last tile the picture is complete.
const late = await open(new URL("standin.onnx", folder), async (done, total) => {
  if (done === total) throw new DOMException("stop", "AbortError");
});
const complete = await late.restore(picture(100 * 60 * 3, 100, 60));
check(
  String(complete.data) === String((await run(picture(100 * 60 * 3, 100, 60))).data),
  "stopped after the last tile",
);
// At strength 0 the picture comes back, and no graph is asked.
const unasked = () => Promise.reject(new Error("a graph was asked"));
const same = { data: Uint8Array.from({ length: 4 * 3 * 3 }, (_, i) => (i * 37) % 256), width: 4, height: 3 };
const untouched = await restore(same, spec, unasked, async () => {}, steer(spec, undefined, 0));
check(String(untouched.data) === String(same.data) && untouched.data !== same.data, "strength 0");
// A whole graph alone, as a model without sidecars.
const wholeBytes = await read(new URL("standin.onnx", folder));
const wholeSpec = specOf(wholeBytes);
const wholeSession = await sessionOf(wholeBytes, new URL("standin.onnx", folder));
const answer = await restore(
  picture(40 * 40 * 3, 40, 40),
  wholeSpec,
  (_, feeds) => {
    const tensors = Object.entries(feeds).map(([name, [data, dims]]) => [name, new ort.Tensor("float32", data, dims)]);
    return wholeSession.run(Object.fromEntries(tensors));
  },
  async () => {},
);
check(answer.posterior.length === 7 && answer.gate.length === 7, "a whole graph tells its routing");
check(spec.cluster_labels[0][1] === "jpeg", "labels");

finish();
