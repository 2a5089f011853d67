// node with.mjs FOLDER: restoreWith on graphs without metadata (open.onnx: two 5x5 blurs; fixed.onnx: the same, 48 px;
// twice.onnx: nearest, twice the size; two.onnx: two inputs), against the session on the whole picture.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web";
import { ModelError } from "../src/restore.js";
import { restoreWith } from "../src/with.js";
import { check, finish, throws } from "./support.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";
const open = async (name) => ort.InferenceSession.create(new Uint8Array(await readFile(join(process.argv[2], `${name}.onnx`))));
const { Tensor } = ort;
const width = 150;
const height = 90;
const image = { data: Float32Array.from({ length: width * height * 3 }, (_, i) => ((i * 7919) % 1013) / 1013), width, height };

/** What the session makes of the whole picture at once, interleaved. */
async function atOnce(session) {
  const planes = new Float32Array(image.data.length);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) planes[c * width * height + i] = image.data[3 * i + c];
  const out = await session.run({ [session.inputNames[0]]: new Tensor("float32", planes, [1, 3, height, width]) });
  const { data, dims } = out[session.outputNames[0]];
  const pixels = dims[2] * dims[3];
  return Float32Array.from({ length: data.length }, (_, i) => Math.min(Math.max(data[(i % 3) * pixels + Math.floor(i / 3)], 0), 1));
}
const apart = (a, b) => a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i])), a.length === b.length ? 0 : Infinity);

const blur = await open("open");
const wanted = await atOnce(blur);
const told = [];
const made = await restoreWith(blur, image, { Tensor, tile: 64, halo: 16, onProgress: (done, total) => told.push([done, total]) });
check(made.width === width && made.height === height, "the size stays");
check(apart(made.data, wanted) < 1e-6, `tiles are the whole: ${apart(made.data, wanted)}`);
check(told.length > 4 && String(told.at(-1)) === `${told.length - 1},${told.length - 1}`, `progress: ${told}`);
// With less halo than the graph looks, the tiles show: the check above can fail.
const short = await restoreWith(blur, image, { Tensor, tile: 64, halo: 0 });
check(apart(short.data, wanted) > 1e-3, "no halo shows");
const half = await restoreWith(blur, image, { Tensor, tile: 64, halo: 16, strength: 0.5 });
check(apart(half.data, wanted.map((value, i) => (value + image.data[i]) / 2)) < 1e-6, "half of it");

const fixed = await restoreWith(await open("fixed"), image, { Tensor, halo: 16 });
const inner = (data) => data.filter((_, i) => Math.floor(i / 3 / width) < height - 8 && Math.floor(i / 3) % width < width - 8);
check(apart(inner(fixed.data), inner(wanted)) < 1e-6, "a graph of one size");
const twice = await restoreWith(await open("twice"), image, { Tensor, tile: 64, multipleOf: 4 });
check(twice.width === 2 * width && twice.height === 2 * height, `${twice.width} x ${twice.height}`);
check(apart(twice.data, await atOnce(await open("twice"))) < 1e-6, "enlarged");
const grey = await restoreWith(blur, { data: new Uint8Array(width * height).fill(90), width, height }, { Tensor, tile: 64 });
check(grey.data.constructor === Uint8Array && grey.data.length === width * height, "a grey picture stays one");

await throws(TypeError, "no Tensor", () => restoreWith(blur, image));
await throws(TypeError, "no session", () => restoreWith({}, image, { Tensor }));
await throws(RangeError, "an output that is not there", () => restoreWith(blur, image, { Tensor, output: "restored" }));
await throws(RangeError, "a halo of half a tile", () => restoreWith(blur, image, { Tensor, tile: 64, halo: 32 }));
await throws(RangeError, "a tile that breaks the rule", () => restoreWith(blur, image, { Tensor, tile: 65, multipleOf: 4 }));
await throws(RangeError, "a scale of a half", () => restoreWith(blur, image, { Tensor, scale: 0.5 }));
await throws(ModelError, "another scale than it has", () => restoreWith(blur, image, { Tensor, tile: 64, scale: 2 }));
await throws(ModelError, "two inputs", async () => restoreWith(await open("two"), image, { Tensor }));
await throws(RangeError, "another tile than the one size", async () => restoreWith(await open("fixed"), image, { Tensor, tile: 64 }));
const stop = new AbortController();
await throws(DOMException, "stopped", () =>
  restoreWith(blur, image, { Tensor, tile: 64, signal: stop.signal, onProgress: (done) => done === 2 && stop.abort() }),
);

finish();
