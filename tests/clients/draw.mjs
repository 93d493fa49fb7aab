// Draws one picture through the official TypeScript client. Usage: node draw.mjs COMMAND [ARGUMENT …]; prints one JSON object.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [command, ...args] = process.argv.slice(2);
const transport = new StdioClientTransport({ command, args, env: process.env, cwd: "/" });
const client = new Client({ name: "typescript-client", version: "1.0.0" });
await client.connect(transport);
const { tools } = await client.listTools();
const progress = [];
const result = await client.callTool(
  { name: "generate_image", arguments: { prompt: "A red kite over a green hill", output_path: "kite.png" } },
  undefined,
  { onprogress: (p) => progress.push(p) },
);
const refused = await client.callTool({ name: "generate_image", arguments: { prompt: "x", model: "gpt-image-1" } });
console.log(JSON.stringify({ tools: tools.map((t) => t.name), result, progress, refused }));
await client.close();
