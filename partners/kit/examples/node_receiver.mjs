// Keeps notices in an append-only file, removes (prints) and answers them. Set PARTNER, SECRET, API_KEY, SERVICE_URL, PORT, STORE.
import { fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout as wait } from "node:timers/promises";
import { Client, MAX_BODY_BYTES, Receiver, readNotice } from "../removal_kit.mjs";

const { PARTNER, SECRET, API_KEY, SERVICE_URL, PORT, STORE } = process.env;
const client = new Client({ baseUrl: SERVICE_URL, apiKey: API_KEY, allowHttp: SERVICE_URL.includes("//127.0.0.1:") });
const file = openSync(STORE, "a");
const taken = new Map(); // what the file says

function remember(entry) {
  taken.set(`${entry.epoch} ${entry.sequence}`, entry);
}
function append(entry) {
  writeSync(file, `\n${JSON.stringify(entry)}\n`); // on a line of its own, even after one that a power cut left half written
  fsyncSync(file); // only what is on the disk has been received
  remember(entry);
}
for (const line of readFileSync(STORE, "utf8").split("\n")) {
  try {
    remember(JSON.parse(line));
  } catch {} // nothing, or half a line: it was never said to be received
}
function take({ epoch, sequence, raw, withdrawn }) {
  if (!taken.has(`${epoch} ${sequence}`)) append({ epoch, sequence, raw, state: withdrawn ? "done" : "new" });
}
const receiver = new Receiver({ partner: PARTNER, take, secrets: [SECRET] });

async function work(entry) {
  const notice = readNotice(entry.raw, entry.epoch);
  const listed = notice.itemsUrl ? client.items(notice.itemsUrl) : notice.items;
  const whole = notice.releases.map((name) => [name, "all"]); // an offboarding lists nothing
  for await (const [name, items] of notice.kind === "offboarding" ? whole : listed) {
    console.log("removed", notice.sequence, name, items);
  }
  const outcomes = notice.itemsTotal ? { removed: notice.itemsTotal } : {};
  const said = await client.acknowledge([{ epoch: entry.epoch, sequence: notice.sequence, status: "completed", outcomes }]);
  console.log(said); // what was refused is not tried again: somebody must look at it
  append({ ...entry, state: said.refused.length ? "refused" : "done" });
}

createServer(async (request, response) => {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) if ((size += chunk.length) <= MAX_BODY_BYTES + 65536) chunks.push(chunk);
  const { status, headers, body } = await receiver.receive(request.headersDistinct, Buffer.concat(chunks));
  response.writeHead(status, headers).end(body);
}).listen(Number(PORT), "127.0.0.1");

for (;;) {
  const waiting = [...taken.values()].filter((entry) => entry.state === "new");
  for (const entry of waiting) await work(entry).catch((error) => console.log("later:", entry.sequence, error.message));
  await wait(500);
}
