// A small chat app on prefloop: node:http and openai-node, no framework.
//
//   npm install && PREFLOOP_URL=http://127.0.0.1:8800 PREFLOOP_KEY=pl_… npm start      # then open http://127.0.0.1:3000
//
// The key stays here. The page streams from /chat; the choice goes from the browser to the gateway with the comparison's own token.
// Not covered: signing users in (a cookie names the browser), storing conversations (the page keeps its own).

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import OpenAI from "openai";

const gateway = (process.env.PREFLOOP_URL ?? "http://127.0.0.1:8800").replace(/\/+$/, "");
const web = new URL("../web/", import.meta.url);
const maxBodyBytes = 1_000_000;
const shown = new Set([400, 413, 429, 503]); // what the person may learn of a refusal; the rest is between this app and the gateway
const policy =
  `default-src 'none'; script-src 'self' ${gateway}; connect-src 'self' ${gateway}; style-src 'self'; ` +
  "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const client = new OpenAI({ baseURL: `${gateway}/v1`, apiKey: process.env.PREFLOOP_KEY, maxRetries: 2 });

const routes = {
  "GET /": showPage,
  "GET /chat.js": (request, response) => showFile("chat.js", "text/javascript", response),
  "GET /chat.css": (request, response) => showFile("chat.css", "text/css", response),
  "POST /chat": chat,
  "POST /thumb": takeThumb,
};

createServer(async (request, response) => {
  const handle = routes[`${request.method} ${request.url}`];
  try {
    if (handle) await handle(request, response);
    else refuse(response, 404, "There is no such page.");
  } catch (error) {
    if (error instanceof BadRequest) return refuse(response, 400, error.message);
    console.error(error);
    if (response.headersSent) response.destroy();
    else refuse(response, 500, "Internal error.");
  }
}).listen(Number(process.env.PORT ?? 3000), "127.0.0.1");

class BadRequest extends Error {}

async function showPage(request, response) {
  const page = (await readFile(new URL("index.html", web), "utf8")).replaceAll("{{gateway}}", gateway);
  const cookie = `user=${readUser(request) ?? randomUUID()}; Max-Age=31536000; HttpOnly; SameSite=Lax; Path=/`;
  response.writeHead(200, { "content-type": "text/html; charset=utf-8", "content-security-policy": policy, "set-cookie": cookie });
  response.end(page);
}

async function showFile(name, type, response) {
  response.writeHead(200, { "content-type": `${type}; charset=utf-8` });
  response.end(await readFile(new URL(name, web)));
}

async function chat(request, response) {
  const { conversation, messages } = await readJson(request);
  if (typeof conversation !== "string" || !Array.isArray(messages) || !messages.length) throw new BadRequest("Send a conversation.");
  const isText = (message) => ["user", "assistant"].includes(message?.role) && typeof message.content === "string";
  if (!messages.every(isText)) throw new BadRequest("Send text only.");
  const left = new AbortController();
  response.on("close", () => left.abort()); // the person went away: the gateway, and the engine behind it, stop
  const user = readUser(request);
  const headers = { "X-Prefloop-Compare": "auto", "X-Prefloop-Conversation": conversation, ...(user && { "X-Prefloop-User": user }) };
  let stream;
  try {
    stream = await client.chat.completions.create(
      { model: "default", messages: [{ role: "system", content: "Answer briefly." }, ...messages], stream: true },
      { headers, signal: left.signal },
    );
  } catch (error) {
    if (error instanceof OpenAI.APIUserAbortError) return;
    if (error instanceof OpenAI.APIConnectionError) return refuse(response, 503, "The model cannot be reached.");
    if (error instanceof OpenAI.APIError) return refuse(response, shown.has(error.status) ? error.status : 502, error.error?.message ?? "Refused.");
    throw error;
  }
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  try {
    for await (const chunk of stream) response.write(`data: ${JSON.stringify(chunk)}\n\n`); // `comparison` is among its fields
    response.end("data: [DONE]\n\n");
  } catch (error) {
    if (!left.signal.aborted) response.end(`data: ${JSON.stringify({ error: { message: "The answer broke off.", code: "engine_lost" } })}\n\n`);
  }
}

async function takeThumb(request, response) {
  const { completion, thumb } = await readJson(request);
  if (!/^[\w-]{1,100}$/.test(completion) || !["up", "down"].includes(thumb)) throw new BadRequest("Send a thumb.");
  try {
    const headers = { "Idempotency-Key": randomUUID() }; // the client's own retries then count once
    await client.post(`/completions/${completion}/signal`, { body: { thumb }, headers });
    response.writeHead(204).end();
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    response.writeHead(502).end();
  }
}

function readUser(request) {
  return /(?:^|; )user=([\w-]{1,100})(?:;|$)/.exec(request.headers.cookie ?? "")?.[1];
}

async function readJson(request) {
  let body = "";
  for await (const piece of request.setEncoding("utf8")) {
    body += piece;
    if (body.length > maxBodyBytes) throw new BadRequest("That is too long.");
  }
  try {
    return Object(JSON.parse(body));
  } catch {
    throw new BadRequest("Send JSON.");
  }
}

function refuse(response, status, message) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify({ error: { message, code: null } }));
}
