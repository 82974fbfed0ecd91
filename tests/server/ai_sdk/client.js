// Asks a server by the AI SDK, with both of its providers for such servers, and prints what it got as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [baseURL, apiKey, model, prompt] = process.argv.slice(2);
const details = {
  extractMetadata: async ({ parsedBody }) => ({ ragfm: parsedBody.ragfm }),
  createStreamExtractor: () => {
    let last;
    return {
      processChunk: (chunk) => { last = chunk.ragfm ?? last; },
      buildMetadata: () => ({ ragfm: last }),
    };
  },
};
const providers = {
  compatible: (name) => createOpenAICompatible({
    name: "ragfm", baseURL, apiKey, includeUsage: true, metadataExtractor: details,
  })(name),
  openai: (name) => createOpenAI({ baseURL, apiKey }).chat(name),
};

async function ask(make) {
  const plain = await generateText({ model: make(model), prompt, maxRetries: 0 });
  const stream = streamText({ model: make(model), prompt, maxRetries: 0, onError: () => {} });
  const pieces = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  let error = null;
  try {
    await generateText({ model: make("nothing"), prompt, maxRetries: 0 });
  } catch (caught) {
    error = { message: caught.message, status: caught.statusCode };
  }
  const failed = streamText({ model: make("nothing"), prompt, maxRetries: 0, onError: () => {} });
  const parts = [];
  for await (const part of failed.fullStream) if (part.type === "error") parts.push(part.error.message);
  return {
    plain: { text: plain.text, reason: plain.finishReason, usage: plain.usage, sources: plain.sources, metadata: plain.providerMetadata },
    streamed: {
      pieces, reason: await stream.finishReason, usage: await stream.usage, sources: await stream.sources,
      metadata: await stream.providerMetadata,
    },
    error, parts,
  };
}

const results = {};
for (const [name, make] of Object.entries(providers)) results[name] = await ask(make);
console.log(JSON.stringify(results));
