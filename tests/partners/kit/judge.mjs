// Given {folder, secret, messages: [{headers, body}]}: what the npm packages `standardwebhooks` and `svix` say to each.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { folder, secret, messages } = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(`${folder}/`);
const judge = (library, { headers, body }) => {
  try {
    new library.Webhook(secret).verify(body, headers);
    return true;
  } catch {
    return false;
  }
};
const libraries = ["standardwebhooks", "svix"].map((name) => [name, require(name)]);
const signed = Object.fromEntries(
  libraries.map(([name, { Webhook }]) => [name, new Webhook(secret).sign("msg_1", new Date(1795479600000), "{}")]),
);
console.log(JSON.stringify({ signed, verdicts: messages.map((message) => libraries.map(([, library]) => judge(library, message))) }));
