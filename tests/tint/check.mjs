// Compiles WGSL with Tint and creates the compute pipeline, on Dawn's null backend: no GPU and no driver is needed.
//
// Standard input: JSON, an array of { entry, needs, source }. Standard output: JSON, an array of strings, each an
// error that names its entry point. A warning of Tint's counts as an error.
import { createRequire } from 'node:module';

let webgpu;
try {
  webgpu = createRequire(import.meta.url)('webgpu');
} catch {
  console.error('the npm package webgpu is not installed: npm ci --prefix tests/tint');
  process.exit(3);
}
const { create, globals } = webgpu;
Object.assign(globalThis, globals);

// WebGPU's feature names, for the needs that differ from them.
const FEATURES = { shader_f16: 'shader-f16', subgroup: 'subgroups' };
// Dawn wants a language extension enabled in the text; naga refuses the line for subgroups.
const ENABLES = { shader_f16: '', subgroup: 'enable subgroups;\n' };

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const kernels = JSON.parse(Buffer.concat(chunks).toString());

// Kept in a name: the adapter does not keep it alive.
const gpu = create(['backend=null']);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: Object.values(FEATURES) });
const errors = [];
for (const { entry, needs, source } of kernels) {
  device.pushErrorScope('validation');
  const code = needs.map((need) => ENABLES[need]).join('') + source;
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const faults = messages.filter(({ type }) => type !== 'info');
  errors.push(...faults.map(({ type, lineNum, message }) => `${entry}, line ${lineNum}: ${type}: ${message}`));
  if (faults.length === 0) {
    device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: entry } });
  }
  const error = await device.popErrorScope();
  if (error && faults.length === 0) errors.push(`${entry}: ${error.message}`);
}
console.log(JSON.stringify(errors));
// Dawn's threads keep node alive.
process.exit(0);
