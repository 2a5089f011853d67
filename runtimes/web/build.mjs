// Bundles the package into dist/: clusir.js (the page's side), worker.js (with onnxruntime-web's script), the .wasm
// files beside them, and the demo page. Prints the sizes.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const here = import.meta.dirname;
const out = process.argv[2] ?? join(here, "dist");
const runtime = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({
  entryPoints: {
    clusir: join(here, "src/index.js"),
    worker: join(here, "src/worker.js"),
    demo: join(here, "demo/demo.js"),
  },
  bundle: true,
  splitting: true, // the demo and the package share the page's side
  format: "esm",
  target: "es2022",
  minify: true,
  external: ["./clusir.js"],
  conditions: ["onnxruntime-web-use-extern-wasm"], // the .wasm and its loader stay files of their own
  outdir: out,
  logLevel: "warning",
});
for (const name of ["index.html", "demo.css", "isolate.js"]) copyFileSync(join(here, "demo", name), join(out, name));
for (const flavour of ["", ".asyncify"]) {
  for (const suffix of ["mjs", "wasm"]) {
    const name = `ort-wasm-simd-threaded${flavour}.${suffix}`;
    copyFileSync(join(runtime, name), join(out, name));
  }
}
for (const name of readdirSync(out)) console.log(String(statSync(join(out, name)).size).padStart(9), name);
