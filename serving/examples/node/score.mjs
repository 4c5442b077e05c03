// node score.mjs BUNDLE: runs account.onnx of a bundle in Node.
//
// The inputs are the bundle's golden cases, so the outputs can be checked: a runtime that
// passes says what every other one says. The ratios in the graph are of the account's gross
// exposure; USD = ratio x gross, rounded up.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { readNpz } from "./npz.mjs";

const TOLERANCE = 1e-6;
const TENSOR_TYPES = { "<f8": "float64", "<f4": "float32", "<i8": "int64", "|b1": "bool" };

const folder = process.argv[2];
if (!folder) {
  console.error("usage: node score.mjs BUNDLE");
  process.exit(2);
}

const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
if (manifest.protocol !== 1) throw new Error(`manifest.json has protocol ${manifest.protocol}; 1 is required`);
for (const name of ["account.onnx", "golden.npz"]) {
  const found = createHash("sha256").update(readFileSync(join(folder, name))).digest("hex");
  if (found !== manifest.files[name]) throw new Error(`${name} was changed: its sha256 differs from the manifest`);
}

const golden = readNpz(readFileSync(join(folder, "golden.npz")));
const session = await ort.InferenceSession.create(join(folder, "account.onnx"), {
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
});
const feeds = {};
for (const name of session.inputNames) {
  const { data, dims, dtype } = golden[`account_input_${name}`];
  feeds[name] = new ort.Tensor(TENSOR_TYPES[dtype], data, dims);
}
const outputs = await session.run(feeds);

let worst = 0;
for (const name of session.outputNames) {
  const expected = golden[`account_output_${name}`].data;
  const found = outputs[name].data;
  if (found.length !== expected.length) throw new Error(`${name} has ${found.length} values, not ${expected.length}`);
  expected.forEach((value, i) => {
    worst = Math.max(worst, Math.abs(found[i] - value) / Math.max(Math.abs(value), TOLERANCE));
  });
}

const horizons = manifest.horizons;
const probability = outputs.liquidation_probability.data;
for (let account = 0; account < probability.length / horizons.length; account++) {
  const row = horizons.map((horizon, h) => `p(${horizon}) ${probability[account * horizons.length + h].toExponential(3)}`);
  console.log(`account ${account}: ${row.join("  ")}`);
}
console.log(JSON.stringify({ bundle_id: manifest.bundle_id, worst_relative_difference: worst, ok: worst <= TOLERANCE }));
process.exit(worst <= TOLERANCE ? 0 : 1);
