// One call of openai-node: reads {call, body, headers, key, maxRetries} from standard input, prints what the client made of it.

import { text } from "node:stream/consumers";
import OpenAI from "openai";

const given = JSON.parse(await text(process.stdin));
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: given.key, maxRetries: given.maxRetries ?? 0 });
const options = { headers: given.headers };

const calls = {
  whole: (body) => client.chat.completions.create(body, options),

  async stream(body) {
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true }, options)) chunks.push(chunk);
    return chunks;
  },

  gathered: (body) => client.chat.completions.stream(body, options).finalChatCompletion(),

  async leave(body) {
    const stream = await client.chat.completions.create({ ...body, stream: true }, options);
    let count = 0;
    for await (const _ of stream) {
      count += 1;
      stream.controller.abort();
    }
    return count;
  },

  models: async () => (await client.models.list()).data,
};

try {
  console.log(JSON.stringify({ result: await calls[given.call](given.body) }));
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  const { status, message, code, param } = error;
  console.log(JSON.stringify({ error: { kind: error.constructor.name, status: status ?? null, message, code: code ?? null, param: param ?? null } }));
}
