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
function take({ epoch, sequence, raw }) {
  if (!taken.has(`${epoch} ${sequence}`)) append({ epoch, sequence, raw, done: false });
}
const receiver = new Receiver({ partner: PARTNER, take, secrets: [SECRET] });

async function work(entry) {
  const notice = readNotice(entry.raw, entry.epoch);
  for await (const [subject, items] of notice.itemsUrl ? client.items(notice.itemsUrl) : notice.items) {
    console.log("removed", notice.sequence, subject, items);
  }
  const outcomes = notice.itemsTotal ? { removed: notice.itemsTotal } : {};
  console.log(await client.acknowledge([{ epoch: entry.epoch, sequence: notice.sequence, status: "completed", outcomes }]));
  append({ ...entry, done: true });
}

createServer(async (request, response) => {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) if ((size += chunk.length) <= MAX_BODY_BYTES + 65536) chunks.push(chunk);
  const { status, headers, body } = await receiver.receive(request.headersDistinct, Buffer.concat(chunks));
  response.writeHead(status, headers).end(body);
}).listen(Number(PORT), "127.0.0.1");

for (;;) {
  const waiting = [...taken.values()].filter((entry) => !entry.done);
  for (const entry of waiting) await work(entry).catch((error) => console.log("the service must wait:", error.message));
  await wait(500);
}
