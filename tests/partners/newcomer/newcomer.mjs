// A partner's first receiver, written from the guide and the kit's README. It keeps a file, and goes on after a kill.
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout as wait } from "node:timers/promises";
import { Client, Receiver, readNotice } from "./removal_kit.mjs";

const { PARTNER, SECRET, SERVICE_URL, API_KEY, STORE, PORT } = process.env;
const client = new Client({ baseUrl: SERVICE_URL, apiKey: API_KEY, allowHttp: SERVICE_URL.startsWith("http://127.0.0.1") });
const known = new Map();

function keep(entry) {
  known.set(`${entry.epoch}/${entry.sequence}`, entry);
}
for (const line of existsSync(STORE) ? readFileSync(STORE, "utf8").split("\n") : []) {
  try {
    keep(JSON.parse(line));
  } catch {} // the last line, where the power went
}
function write(entry) {
  appendFileSync(STORE, `\n${JSON.stringify(entry)}`, { flush: true });
  keep(entry);
}
function take({ epoch, sequence, raw, withdrawn }) {
  if (!known.has(`${epoch}/${sequence}`)) write({ epoch, sequence, raw, done: withdrawn });
}
function remind({ data }) {
  console.log("reminded of", data.due.map((due) => due.sequence));
}
const receiver = new Receiver({ partner: PARTNER, take, remind, secrets: [SECRET] });

createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const { status, headers, body } = await receiver.receive(request.headersDistinct, Buffer.concat(parts));
  response.writeHead(status, headers).end(body);
}).listen(Number(PORT), "127.0.0.1");

async function remove({ epoch, raw }) {
  const notice = readNotice(raw, epoch);
  const listed = notice.itemsUrl ? client.items(notice.itemsUrl) : notice.items;
  const whole = notice.releases.map((release) => [release, "all"]);
  for await (const [name, items] of notice.kind === "offboarding" ? whole : listed) {
    console.log("removed", notice.sequence, name, Array.isArray(items) ? items.length : 1);
  }
  const outcomes = notice.itemsTotal ? { removed: notice.itemsTotal } : {};
  const { refused } = await client.acknowledge([{ epoch, sequence: notice.sequence, status: "completed", outcomes }]);
  return refused;
}

for (;;) {
  for (const entry of [...known.values()].filter((entry) => !entry.done)) {
    const refused = await remove(entry).catch((error) => console.log("later:", error.message));
    if (refused) write({ ...entry, done: true, refused }); // what was refused somebody must look at
  }
  await wait(300);
}
