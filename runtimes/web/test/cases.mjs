// node cases.mjs FOLDER: the golden cases of a folder, without a browser.
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { runGolden } from "./golden.mjs";
import { open, read } from "./open.mjs";
import { check, finish } from "./support.mjs";

for (const { name, difference, failures } of await runGolden(
  pathToFileURL(join(resolve(process.argv[2]), "/")),
  read,
  open,
)) {
  console.log(`${name}: max abs difference ${difference.toPrecision(3)}`);
  check(failures.length === 0, `${name}: ${failures.join("; ")}`);
}
finish();
