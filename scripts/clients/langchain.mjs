// LangChain of JavaScript against a running server: ChatOpenAI and OpenAIEmbeddings. n8n has both inside.

import assert from "node:assert/strict";
import { ContextOverflowError } from "@langchain/core/errors";
import { AIMessage, HumanMessage, SystemMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import {
  ANA, ANSWER, assertNear, baseURL, checksOf, City, Person, PERSON_QUESTION, QUESTION, TOO_LONG, WEATHER,
  WEATHER_ANSWER, WEATHER_QUESTION,
} from "./checks.mjs";

const check = checksOf("langchain");
const place = { model: "demo", apiKey: "none", maxRetries: 0, configuration: { baseURL } };
const llm = new ChatOpenAI({ ...place, temperature: 0 });
const getWeather = tool(({ city }) => (city === "Paris" ? WEATHER : "{}"), {
  name: "get_weather",
  description: "Get the current weather of a city",
  schema: City,
});

async function gather(stream) {
  let whole;
  for await (const chunk of stream) whole = whole === undefined ? chunk : whole.concat(chunk);
  return whole;
}

await check("invoke", async () => {
  const message = await llm.invoke(QUESTION);
  assert.equal(message.content, ANSWER);
  assert.equal(message.response_metadata.finish_reason, "stop");
  const usage = message.usage_metadata;
  assert.equal(usage.total_tokens, usage.input_tokens + usage.output_tokens);
});

await check("a conversation of all roles", async () => {
  const message = await llm.invoke([
    new SystemMessage("You are helpful."),
    new HumanMessage({ content: [{ type: "text", text: "Hello!" }] }),
    new AIMessage("Hello! How can I help you?"),
    new HumanMessage(QUESTION),
  ]);
  assert.equal(message.content, ANSWER);
});

await check("stream", async () => {
  const whole = await gather(await llm.stream(QUESTION));
  assert.equal(whole.content, ANSWER);
  assert.ok(whole.usage_metadata.output_tokens > 3);
});

await check("batch", async () => {
  const messages = await llm.batch([QUESTION, QUESTION, QUESTION]);
  assert.deepEqual(messages.map((message) => message.content), [ANSWER, ANSWER, ANSWER]);
});

await check("as n8n's chat model sets it up", async () => {
  const model = new ChatOpenAI({
    ...place,
    temperature: 0,
    topP: 1,
    frequencyPenalty: 0,
    presencePenalty: 0,
    maxTokens: -1,
    supportsStrictToolCalling: false,
    configuration: { baseURL, defaultHeaders: { "X-Tenant-Id": "demo" } },
  });
  assert.equal((await model.invoke(QUESTION)).content, ANSWER);
  assert.equal((await model.bindTools([getWeather]).invoke(WEATHER_QUESTION)).tool_calls.length, 1);
});

const byResponses = new ChatOpenAI({ ...place, temperature: 0, useResponsesApi: true });

await check("the responses API", async () => {
  const message = await byResponses.invoke(QUESTION);
  assert.equal(message.text, ANSWER);
  assert.ok(message.usage_metadata.output_tokens > 3);
  assert.equal((await gather(await byResponses.stream(QUESTION))).text, ANSWER);
  const structured = byResponses.withStructuredOutput(Person, { name: "person", method: "jsonSchema" });
  assert.deepEqual(await structured.invoke(PERSON_QUESTION), ANA);
});

for (const [name, model] of Object.entries({ "tool loop": llm, "the responses API: tool loop": byResponses })) {
  for (const streamed of [false, true]) {
    await check(`${name}${streamed ? ", streamed" : ""}`, async () => {
      const bound = model.bindTools([getWeather]);
      const ask = async (messages) =>
        streamed ? gather(await bound.stream(messages)) : bound.invoke(messages);
      const messages = [new HumanMessage(WEATHER_QUESTION)];
      const called = await ask(messages);
      assert.equal(called.tool_calls.length, 1);
      assert.deepEqual(called.tool_calls[0].args, { city: "Paris" });
      messages.push(called, await getWeather.invoke(called.tool_calls[0]));
      assert.equal((await ask(messages)).text, WEATHER_ANSWER);
    });
  }
}

for (const method of ["jsonSchema", "functionCalling", "jsonMode"]) {
  await check(`structured output by ${method}`, async () => {
    const structured = llm.withStructuredOutput(Person, { name: "person", method });
    const answer = await structured.invoke(PERSON_QUESTION);
    if (method === "functionCalling") Person.parse(answer);
    else assert.deepEqual(answer, ANA);
  });
}

await check("embeddings", async () => {
  const embeddings = new OpenAIEmbeddings(place);
  const [hello, world] = await embeddings.embedDocuments(["Hello", "World"]);
  assertNear(await embeddings.embedQuery("Hello"), hello);
  assert.notDeepEqual(hello, world);
});

await check("errors", async () => {
  const missing = new ChatOpenAI({ ...place, model: "none" });
  await assert.rejects(missing.invoke(QUESTION), (error) => error.status === 404);
  await assert.rejects(llm.invoke(TOO_LONG), (error) => ContextOverflowError.isInstance(error));
});
