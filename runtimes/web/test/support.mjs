// Checks that count instead of stopping.
let passed = 0;
let failed = 0;

export function check(holds, what) {
  if (holds) passed++;
  else failed++;
  if (!holds) console.log(`FAILED: ${what}`);
}

/** Whether `action` throws or rejects with a `kind`. */
export async function throws(kind, what, action) {
  const error = await Promise.resolve()
    .then(action)
    .then(
      () => null,
      (thrown) => thrown,
    );
  check(error instanceof kind, `${what}: ${error}`);
  return error;
}

/** The closing line; the exit status is 1 where a check failed or none was made. */
export function finish() {
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed || !passed ? 1 : 0);
}
