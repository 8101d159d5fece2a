// Reads a list of cases from stdin and writes what the JavaScript kit makes of each.
import { readFileSync } from "node:fs";
import * as kit from "../../../partners/kit/removal_kit.mjs";

function headersOf(pairs) {
  const headers = {};
  for (const [name, value] of pairs) (headers[name] ??= []).push(value);
  return headers;
}

const plain = ({ epoch, sequence, kind, itemsTotal, subject, items, itemsUrl, releases, withdrawn }) => ({
  epoch, sequence, kind, items_total: itemsTotal, subject, items, items_url: itemsUrl, releases, withdrawn,
});

async function receive({ headers, body, now, broken, seen, take_samples, secrets, public_keys }) {
  const said = [];
  const receiver = new kit.Receiver({
    partner: "acme",
    secrets,
    publicKeys: public_keys,
    takeSamples: take_samples,
    seen: (epoch, sequence) => seen.some(([e, s]) => e === epoch && s === sequence),
    take: async ({ epoch, sequence }) => {
      if (sequence === broken) throw new Error("the disk is full");
      said.push(["take", epoch, sequence]);
    },
    remind: () => said.push(["remind"]),
    log: () => {},
  });
  const answer = await receiver.receive(headersOf(headers), body, now);
  return { status: answer.status, body: answer.body && JSON.parse(answer.body), said };
}

async function run(given) {
  const body = Buffer.from(given.body ?? "", "base64");
  const { now, secrets, public_keys: publicKeys } = given;
  try {
    if (given.call === "verify") return { id: kit.verify(headersOf(given.headers), body, { now, secrets, publicKeys }) };
    if (given.call === "receive") return await receive({ ...given, body });
    const { type, epoch, notices } = kit.parse(body, "acme");
    return { type, epoch, notices: notices.map(plain) };
  } catch (error) {
    if (!(error instanceof kit.KitError)) throw error;
    return { code: error.code };
  }
}

const results = [];
for (const given of JSON.parse(readFileSync(0, "utf8"))) results.push(await run(given));
console.log(JSON.stringify(results));
