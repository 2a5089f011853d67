// node bundled.mjs SITE MODELS OUT.json [CHROMIUM]
//
// In headless Chromium: a site that a bundler has made of the installed package. Its main.js puts `ort`, `Restorer` and
// `restoreWith` into globalThis. MODELS has tiny.onnx and its graphs, and open.onnx, which answers whole pictures. OUT gets
// what both made of one picture.
import { writeFileSync } from "node:fs";
import { launch } from "./chromium.mjs";
import { serve } from "./server.mjs";
import { check, finish } from "./support.mjs";

const [site, models, out] = process.argv.slice(2, 5);
const browser = await launch(process.argv[5] ?? "/usr/bin/chromium");
try {
  const server = await serve({ "/": site, "/models/": models }, { isolated: true });
  const page = await (await browser.newContext()).newPage();
  page.on("pageerror", (error) => check(false, `page error: ${error.message}`));
  await page.goto(`${server.origin}/`);
  await page.waitForFunction(() => globalThis.restoreWith);
  const made = await page.evaluate(async () => {
    const { ort, Restorer, restoreWith } = globalThis;
    const [width, height] = [110, 90];
    const data = Float32Array.from({ length: width * height * 3 }, (_, i) => ((i * 7919) % 1013) / 1013);
    const restorer = await Restorer.open("/models/tiny.onnx", { base: "/clusir/", backend: "wasm" });
    const own = await restorer.restore({ data, width, height });
    ort.env.wasm.numThreads = 1;
    const bytes = new Uint8Array(await (await fetch("/models/open.onnx")).arrayBuffer());
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    const tiled = await restoreWith(session, { data, width, height }, { Tensor: ort.Tensor, tile: 64, halo: 16 });
    return { own: [...own.data], tiled: [...tiled.data], backend: restorer.backend };
  });
  check(made.backend === "wasm", made.backend);
  check(made.own.length === 110 * 90 * 3 && made.tiled.length === made.own.length, "two pictures");
  writeFileSync(out, JSON.stringify(made));
} catch (error) {
  check(false, error.stack);
} finally {
  await browser.close();
}
finish();
