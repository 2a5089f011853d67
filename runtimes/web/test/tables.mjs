// node tables.mjs FOLDER (tests/golden/tables): the answers that Python and C++ give too.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { channelsOf, checkFinite, checkSamples, gather, writeRow } from "../src/pixels.js";
import { topK } from "../src/routing.js";
import { hints, isPlain, nothingToMend, steer } from "../src/steering.js";
import { FIELDS, ModelError, readMetadata, readSpec } from "../src/spec.js";
import { planAxis, reflect, sample } from "../src/tiling.js";
import { check, finish } from "./support.mjs";

const table = (name) => JSON.parse(readFileSync(join(process.argv[2], `${name}.json`), "utf8"));
const ARRAYS = { u8: Uint8Array, u16: Uint16Array, f32: Float32Array };
const number = (value) => Number(value); // "NaN" and "Infinity" are what they say

/** What the body threw, or undefined. */
const thrown = (body) => {
  try {
    body();
  } catch (error) {
    return error;
  }
};
const same = (a, b) => {
  if (typeof a !== "object" || a === null) return a === b;
  return Object.keys(a).length === Object.keys(b).length && Object.keys(a).every((key) => same(a[key], b[key]));
};

const read = ({ metadata }) =>
  readSpec(new Map(Object.entries(metadata).map(([key, text]) => [`clusir.${key}`, text])));
const specs = table("specs");
for (const entry of specs.good) {
  const error = thrown(() => {
    const spec = read(entry);
    for (const [key, value] of Object.entries(entry.reads))
      check(same(spec[key], value), `good spec '${entry.name}': ${key} is ${JSON.stringify(spec[key])}`);
  });
  check(error === undefined, `good spec '${entry.name}': ${error}`);
}
for (const entry of specs.bad) {
  const error = thrown(() => read(entry));
  check(error instanceof ModelError && !error.message.includes("\n"), `bad spec '${entry.name}': ${error}`);
}
// Metadata alone is no model: ModelProto field 14, one entry of key (1) and value (2).
const key = [...Buffer.from("clusir.spec_version")];
const entry = [0x0a, key.length, ...key, 0x12, 1, 0x31];
const headless = thrown(() => readMetadata(Uint8Array.from([0x72, entry.length, ...entry])));
check(headless instanceof ModelError, `metadata without a graph: ${headless}`);
const whole = readMetadata(Uint8Array.from([0x72, entry.length, ...entry, 0x3a, 0]));
check(whole.get("clusir.spec_version") === "1", "metadata beside a graph");
// A byte order mark belongs to the value: elsewhere such a number is none, and here it is none either.
const bom = [0x0a, key.length, ...key, 0x12, 4, 0xef, 0xbb, 0xbf, 0x31];
const marked = readMetadata(Uint8Array.from([0x72, bom.length, ...bom, 0x3a, 0])).get("clusir.spec_version");
check(marked === "\ufeff1", `a byte order mark in metadata: ${JSON.stringify(marked)}`);
for (const field of Object.keys(FIELDS)) console.log(`field ${field}`);

// A whole graph may answer alone where every family is left to its judgement in full, and nowhere else.
for (const [permissions, plain] of [
  [[], true],
  [[-1, -1], true],
  [[-1, 0], false],
  [[-1, -0.5], false],
  [[1, -1], false],
])
  check(isPlain({ permissions: Float32Array.from(permissions) }) === plain, `permissions ${permissions} are plain`);

for (const { name, probability, k, gate } of table("gates").cases) {
  let made;
  const error = thrown(() => (made = topK(Float32Array.from(probability, number), k)));
  if (gate === null) check(error?.message.includes("router"), `gate '${name}' is an error: ${error}`);
  else
    check(
      made?.length === gate.length && gate.every((v, i) => Math.abs(made[i] - v) <= 1e-6 && made[i] > 0 === v > 0),
      `gate '${name}': ${made} ${error}`,
    );
}

const ranged = ({ low, high }) => ({
  ...readSpec(new Map([["clusir.spec_version", "1"]])),
  ...{ value_range: [low, high], tile_px: 1, halo_px: 0, size: { multiple_of: 1, minimum: 1, static_px: 0, maximum: 0 } },
});
const pixels = table("pixels");
for (const entry of pixels.written) {
  for (const channels of [1, 3]) {
    const out = new ARRAYS[entry.type](channels);
    const sums = new Float32Array(3).fill(number(entry.value));
    const error = thrown(() => {
      checkFinite(sums, "restored");
      writeRow(out.slice(), out, channels, ranged(entry), 1, 0, sums, 0);
    });
    const name = `written ${entry.type} '${entry.name}', ${channels} channels`;
    if (entry.gives === null) check(error?.message.includes("NaN"), `${name} is an error: ${error}`);
    else
      check(
        out.every((value) => value === Math.fround(entry.gives)),
        `${name}: ${out} ${error}`,
      );
  }
}
for (const entry of pixels.read) {
  for (const channels of [1, 3]) {
    const data = new ARRAYS[entry.type](channels).fill(number(entry.sample));
    const image = { data, width: 1, height: 1 };
    const spec = ranged(entry);
    let planes;
    const error = thrown(() => {
      channelsOf(image, spec);
      checkSamples(data);
      planes = gather(image, channels, spec, planAxis(1, spec), planAxis(1, spec), 0, 0);
    });
    const name = `read ${JSON.stringify(entry)}`;
    if (entry.gives === null) check(error instanceof RangeError, `${name} is refused: ${error}`);
    else
      check(
        planes?.every((value) => Math.abs(value - entry.gives) <= 2e-7 * Math.abs(entry.gives) + 1e-7),
        `${name}: ${planes} ${error}`,
      );
  }
}

const plans = table("plans");
for (const entry of plans.cases) {
  const { tile_px, halo_px, multiple_of = 16, minimum = 16, static_px = 0, maximum = 0 } = entry;
  const axis = planAxis(entry.length, { tile_px, halo_px, size: { multiple_of, minimum, static_px, maximum } });
  const name = `plan of ${entry.length} by ${tile_px}`;
  check(axis.tile === entry.tile, `${name}: tile ${axis.tile}`);
  check(same(sample(axis), entry.sample), `${name}: sample ${sample(axis)}`);
  if (entry.starts) check(same(axis.starts, entry.starts), `${name}: starts ${axis.starts}`);
  else check(axis.starts.length === entry.count && axis.starts.at(-1) === entry.last, `${name}: starts`);
  entry.weights?.forEach((weights, i) => check(same(Array.from(axis.weights[i]), weights), `${name}: weights ${i}`));
}
for (const [position, length, pixel] of plans.reflect)
  check(reflect(position, length) === pixel, `reflect ${position} of ${length}`);

const wheel = table("steering");
for (const { name, families, floors, fix, strength, permissions, blend } of wheel.good) {
  let made;
  const error = thrown(() => (made = steer({ families, evidence_floors: floors }, fix, strength)));
  const right = made && same(Array.from(made.permissions), permissions) && made.blend === blend;
  check(right, `steering '${name}': ${made?.permissions} ${made?.blend} ${error}`);
}
for (const { name, families, fix, strength } of wheel.bad)
  check(thrown(() => steer({ families }, fix, strength)) instanceof RangeError, `steering '${name}' is refused`);
check(
  thrown(() => steer({ families: [], scale: 2 }, null, 0.5)) instanceof RangeError,
  "no blending of what is enlarged",
);
for (const { before, restored, strength, gives } of wheel.blends) {
  const out = new Float32Array(3);
  const sums = new Float32Array(3).fill(restored);
  writeRow(new Float32Array(3).fill(before), out, 3, ranged({ low: 0, high: 1 }), 1, 0, sums, 0, { blend: strength });
  check(
    out.every((value) => Math.abs(value - gives) <= 1e-7),
    `blend ${before} ${restored} ${strength}: ${out}`,
  );
}
const KNOWN = ["noise", "jpeg", "haze", "low_light"];
for (const { families = KNOWN, evidence, thresholds, floors, permissions, left } of wheel.hints) {
  const spec = { families, evidence_thresholds: thresholds, evidence_floors: floors };
  const found = hints(Float32Array.from(evidence), Float32Array.from(permissions), spec);
  check(
    same(
      found.map(({ family }) => family),
      left,
    ),
    `hints of ${evidence}: ${JSON.stringify(found)}`,
  );
}

for (const { evidence, thresholds, floors, permissions, rest } of wheel.rest) {
  const spec = { families: KNOWN, evidence_thresholds: thresholds, evidence_floors: floors };
  const given = [Float32Array.from(evidence), Float32Array.from(permissions)];
  check(nothingToMend(...given, spec) === rest, `at rest: ${evidence}, ${permissions}`);
  check(!nothingToMend(...given, { ...spec, scale: 2 }), "what is enlarged does not rest");
}
check(!nothingToMend(new Float32Array(0), new Float32Array(0), { families: [] }), "without families nothing rests");

finish();
