// Given {base_url, options, call, arguments, first}: what a client of the JavaScript kit makes of one call.
import { readFileSync } from "node:fs";
import { Client, KitError } from "../../../partners/kit/removal_kit.mjs";

const { base_url: baseUrl, options, call, arguments: args, first } = JSON.parse(readFileSync(0, "utf8"));
const slept = [];
let value = null;
let error = null;
try {
  const client = new Client({ baseUrl, apiKey: "rk_acme", ...options, sleep: async (seconds) => slept.push(seconds) });
  if (call === "items" || call === "pull") {
    value = [];
    for await (const each of client[call](...args)) {
      value.push(call === "items" ? each : [each.epoch, each.notices.map((notice) => notice.sequence)]);
      if (value.length === first) break;
    }
  } else value = await client[call](...args);
} catch (caught) {
  if (!(caught instanceof KitError)) throw caught;
  error = [caught.code, caught.status];
}
console.log(JSON.stringify({ value, error, slept }));
