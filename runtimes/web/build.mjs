// Bundles the package into a folder: clusir.js (the page's side), worker.js (with onnxruntime-web's script), the .wasm
// files beside them, and the demo page. Prints the sizes.
//
//   node build.mjs [OUT]      into OUT, else dist/
//   node build.mjs --page     into ../page/built, which the wheel holds: without the WebGPU flavour of the runtime, which
//                             would be the larger part of it, and with the licences of what is bundled
import { build, transformSync } from "esbuild";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const here = import.meta.dirname;
const [given, place] = process.argv.slice(2);
const forWheel = given === "--page";
const out = forWheel ? (place ?? join(here, "../page/built")) : (given ?? join(here, "dist"));
const runtime = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));
const modules = dirname(dirname(runtime));

// Texts of licences that some packages name and do not bring.
const TERMS = {
  ISC: `Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT,
INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF
THIS SOFTWARE.`,
  MIT: `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`,
};

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
for (const name of ["icon.svg", "app.webmanifest"]) copyFileSync(join(here, "demo", name), join(out, name));
writeFileSync(join(out, "index.html"), readFileSync(join(here, "demo/index.html"), "utf8").replace(/\n +/g, "\n"));
small("demo.css", readFileSync(join(here, "demo/demo.css"), "utf8"));
for (const flavour of forWheel ? [""] : ["", ".asyncify"]) {
  for (const suffix of ["mjs", "wasm"]) {
    const name = `ort-wasm-simd-threaded${flavour}.${suffix}`;
    copyFileSync(join(runtime, name), join(out, name));
  }
}
if (forWheel) {
  const page = readFileSync(join(out, "index.html"), "utf8");
  const told = page.replace('<html lang="en">', '<html lang="en" data-backend="wasm">');
  if (told === page) throw new Error("demo/index.html: no <html lang> to write the back end into");
  writeFileSync(join(out, "index.html"), told);
  writeFileSync(join(out, "licenses.txt"), licences());
}
small("isolate.js", keeping(readFileSync(join(here, "demo/isolate.js"), "utf8")));
for (const name of readdirSync(out)) console.log(String(statSync(join(out, name)).size).padStart(9), name);

function small(name, text) {
  const { code } = transformSync(text, { loader: name.endsWith(".css") ? "css" : "js", minify: true });
  writeFileSync(join(out, name), code);
}

/** The service worker with the files that it keeps, under a name that changes with them. WebGPU's flavour of the runtime,
 * which few pages load, is kept when it is asked for. */
function keeping(text) {
  const files = readdirSync(out).filter((name) => !name.includes(".asyncify.")).sort();
  const hash = createHash("sha256");
  for (const name of files) hash.update(name).update(readFileSync(join(out, name)));
  const told = text
    .replace("const FILES = []", `const FILES = ${JSON.stringify(["./", ...files])}`)
    .replace('const KEPT = "clusir"', `const KEPT = "clusir-${hash.digest("hex").slice(0, 12)}"`);
  if (!told.includes("index.html") || !told.includes("clusir-")) throw new Error("demo/isolate.js: nowhere to write files");
  return told;
}

/** The licence of every package that onnxruntime-web brings into the bundle, as each states it. */
function licences() {
  const told = new Map();
  const add = (name) => {
    const folder = join(modules, name);
    if (told.has(name) || name.startsWith("@types/") || !existsSync(folder)) return;
    const { version, license, author, dependencies = {} } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    const holder = name.startsWith("onnxruntime") ? "Microsoft Corporation" : (author?.name ?? author ?? "its authors");
    const text = file ? readFileSync(join(folder, file), "utf8") : `Copyright (c) ${holder}\n\n${TERMS[license]}`;
    if (!file && !TERMS[license]) throw new Error(`${name}: no text of its licence ${license}`);
    told.set(name, `${name} ${version} (${license})\n\n${text.trim()}\n`);
    Object.keys(dependencies).forEach(add);
  };
  add("onnxruntime-web");
  return [...told.values()].join(`\n${"-".repeat(80)}\n\n`);
}
