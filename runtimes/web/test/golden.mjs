// The golden cases, for any place that can read files and run a graph. Used by node.mjs and, in the page, by
// browser.mjs.
const TYPES = { u8: [Uint8Array, 255], u16: [Uint16Array, 65535], f32: [Float32Array, 1] };

const largest = (a, b) => {
  if (a.length !== b.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i] - b[i]);
    if (!(difference <= worst)) worst = difference; // a NaN wins and stays
  }
  return worst;
};

/**
 * @param {URL} folder the golden folder
 * @param read (url) => Promise<Uint8Array>
 * @param open (model URL) => Promise<{restore(image, {fix, strength}) => Promise<{data, posterior, gate}>}>
 * @returns {Promise<{name, difference, failures: string[]}[]>}
 */
export async function runGolden(folder, read, open) {
  const at = (name) => new URL(name, folder);
  const manifest = JSON.parse(new TextDecoder().decode(await read(at("manifest.json"))));
  const report = [];
  const models = new Map(); // each is opened once, and restores pictures of many sizes and types
  const opened = async (name) => models.get(name) ?? models.set(name, await open(at(name))).get(name);
  for (const entry of manifest.cases) {
    const { name, width, height, channels, tolerance, fix, strength, statistics, evidence = [] } = entry;
    const [Samples, top] = TYPES[entry.type];
    const data = new Samples((await read(at(entry.input))).slice().buffer);
    const expected = new Float32Array((await read(at(entry.restored))).slice().buffer);
    const model = await opened(entry.model);
    const failures = [];
    const expect = (holds, what) => holds || failures.push(what);

    const shown = channels < 3 ? 1 : 3; // the others are alpha
    const floats = Float32Array.from(data, (value) => value / top);
    const result = await model.restore({ data: floats, width, height }, { fix, strength, statistics });
    const colours = result.data.filter((_, i) => i % channels < shown);
    const difference = largest(colours, expected);
    expect(difference <= tolerance, `restored differs by ${difference}`);
    expect(largest(result.posterior, entry.posterior) <= tolerance, "posterior differs");
    expect(largest(result.gate, entry.gate) <= tolerance, "gate differs");
    expect(largest(result.evidence, evidence) <= tolerance, "evidence differs");
    const kept = await model.restore({ data, width, height }, { strength: 0 });
    expect(largest(kept.data, data) === 0, "strength 0 changes the picture");

    if (top > 1) {
      const same = await model.restore({ data, width, height }, { fix, strength, statistics });
      expect(same.data instanceof Samples, "the sample type changed");
      const wanted = expected.map((value) => Math.round(value * top));
      const levels = largest(
        same.data.filter((_, i) => i % channels < shown),
        wanted,
      );
      expect(levels <= (top === 255 ? 1 : 1 + tolerance * top), `integers differ by ${levels} levels`);
      const alpha = (values) => values.filter((_, i) => i % channels === shown);
      expect(largest(alpha(same.data), alpha(data)) === 0, "alpha changed");
    }
    report.push({ name, difference, failures });
  }
  for (const { name, model, width, height, type, input, restored, scale, tolerance, maps = {}, numbers } of manifest.enlarged) {
    const [Samples, top] = TYPES[type];
    const data = new Samples((await read(at(input))).slice().buffer);
    const expected = new Float32Array((await read(at(restored))).slice().buffer);
    const enlarges = await opened(model);
    for (const [map, given] of Object.entries(maps)) {
      if (typeof given === "number") continue;
      maps[map] = { data: new TYPES[given.type][0]((await read(at(given.input))).slice().buffer), width, height };
    }
    const floats = Float32Array.from(data, (value) => value / top);
    const result = await enlarges.restore({ data: floats, width, height }, { maps, numbers });
    const failures = [];
    if (result.width !== scale * width || result.height !== scale * height)
      failures.push(`${result.width}x${result.height}`);
    const difference = largest(result.data, expected);
    if (!(difference <= tolerance)) failures.push(`restored differs by ${difference}`);
    const whole = await enlarges.restore({ data, width, height }, { maps, numbers });
    const levels = largest(
      whole.data,
      expected.map((value) => Math.round(value * top)),
    );
    if (!(levels <= 1)) failures.push(`integers differ by ${levels} levels`);
    for (const wrong of [{ none: 1 }, ...(enlarges.spec.numbers.length ? [{ sigma: 76 }] : [])]) {
      const answer = enlarges.restore({ data, width, height }, { numbers: wrong });
      const told = await answer.then(() => "no error", ({ message }) => message);
      if (!told.includes(`'${Object.keys(wrong)[0]}'`)) failures.push(`a number that it does not take: ${told}`);
    }
    report.push({ name, difference, failures });
  }
  for (const { name, model, width, height, says, fix, strength } of manifest.refused) {
    const answer = (await opened(model)).restore({ data: new Uint8Array(width * height * 3), width, height }, { fix, strength });
    const message = await answer.then(
      () => "no error",
      (error) => error.message,
    );
    report.push({ name, difference: 0, failures: message.includes(says) ? [] : [message] });
  }
  for (const model of models.values()) model.close?.();
  return report;
}
