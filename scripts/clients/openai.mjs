// The openai package of JavaScript against a running server: chats, tools, forms, embeddings, models, errors.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import {
  ANA, ANSWER, assertNear, baseURL, checksOf, City, Person, PERSON_QUESTION, QUESTION, TOO_LONG, WEATHER,
  WEATHER_ANSWER, WEATHER_QUESTION,
} from "./checks.mjs";

const check = checksOf("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const ask = { model: "demo", temperature: 0, messages: user(QUESTION) };
const askWeather = { ...ask, messages: user(WEATHER_QUESTION) };
const getWeather = zodFunction({
  name: "get_weather",
  description: "Get the current weather of a city",
  parameters: City,
  function: ({ city }) => {
    assert.equal(city, "Paris");
    return WEATHER;
  },
});

await check("chat", async () => {
  const completion = await client.chat.completions.create(ask);
  assert.equal(completion.choices[0].message.content, ANSWER);
  assert.equal(completion.choices[0].finish_reason, "stop");
  assert.ok(completion._request_id.startsWith("req_"));
  const { usage } = completion;
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
});

await check("chat, streamed", async () => {
  const stream = await client.chat.completions.create({
    ...ask, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, ANSWER);
  assert.ok(usage.completion_tokens > 3);
});

await check("chat, streamed by the helper", async () => {
  const runner = client.chat.completions.stream(ask);
  const deltas = [];
  runner.on("content", (delta) => deltas.push(delta));
  assert.equal(await runner.finalContent(), ANSWER);
  assert.equal(deltas.join(""), ANSWER);
});

await check("chat, streamed and given up", async () => {
  const stream = await client.chat.completions.create({ ...ask, stream: true, ignore_eos: true });
  for await (const chunk of stream) {
    assert.equal(chunk.choices[0].delta.role, "assistant");
    break;
  }
});

for (const stream of [false, true]) {
  await check(`tool loop${stream ? ", streamed" : ""}`, async () => {
    const runner = client.chat.completions.runTools({ ...askWeather, stream, tools: [getWeather] });
    assert.equal(await runner.finalContent(), WEATHER_ANSWER);
    const roles = runner.messages.map((message) => message.role);
    assert.deepEqual(roles, ["user", "assistant", "tool", "assistant"]);
  });
}

await check("arguments of a call, parsed", async () => {
  const completion = await client.chat.completions.parse({ ...askWeather, tools: [getWeather] });
  const [call] = completion.choices[0].message.tool_calls;
  assert.deepEqual(call.function.parsed_arguments, { city: "Paris" });
  assert.equal(completion.choices[0].finish_reason, "tool_calls");
});

await check("structured output", async () => {
  const fields = {
    ...ask, messages: user(PERSON_QUESTION), response_format: zodResponseFormat(Person, "person"),
  };
  const completion = await client.chat.completions.parse(fields);
  assert.deepEqual(completion.choices[0].message.parsed, ANA);
  const streamed = await client.chat.completions.stream(fields).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, ANA);
});

const respond = { model: "demo", temperature: 0, input: QUESTION };

await check("responses", async () => {
  const response = await client.responses.create({ ...respond, instructions: "You are helpful." });
  assert.equal(response.output_text, ANSWER);
  assert.equal(response.status, "completed");
});

await check("responses, streamed", async () => {
  let text = "";
  for await (const event of await client.responses.create({ ...respond, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, ANSWER);
  const final = await client.responses.stream(respond).finalResponse();
  assert.equal(final.output_text, ANSWER);
});

await check("responses: tool loop", async () => {
  const { name, description } = getWeather.function;
  const tools = [zodResponsesFunction({ name, description, parameters: City })];
  const input = user(WEATHER_QUESTION);
  const first = await client.responses.parse({ ...respond, input, tools });
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(call.parsed_arguments, { city: "Paris" });
  const sent = first.output.map(({ parsed_arguments, ...item }) => item);
  const output = { type: "function_call_output", call_id: call.call_id, output: WEATHER };
  const second = await client.responses.create({ ...respond, input: [...input, ...sent, output], tools });
  assert.equal(second.output_text, WEATHER_ANSWER);
});

await check("responses: structured output", async () => {
  const response = await client.responses.parse({
    ...respond, input: PERSON_QUESTION, text: { format: zodTextFormat(Person, "person") },
  });
  assert.deepEqual(response.output_parsed, ANA);
});

await check("completions", async () => {
  const prompt = `<|im_start|>user\n${QUESTION}<|im_end|>\n<|im_start|>assistant\n`;
  const completion = await client.completions.create({ model: "demo", temperature: 0, prompt });
  assert.equal(completion.choices[0].text, ANSWER);
});

await check("embeddings", async () => {
  const fields = { model: "demo", input: ["Hello", "World"] };
  const byDefault = await client.embeddings.create(fields);
  const asNumbers = await client.embeddings.create({ ...fields, encoding_format: "float" });
  asNumbers.data.forEach((one, index) => assertNear(byDefault.data[index].embedding, one.embedding));
  const short = await client.embeddings.create({ ...fields, dimensions: 8 });
  assert.equal(short.data[1].embedding.length, 8);
});

await check("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ["demo"]);
  assert.equal((await client.models.retrieve("demo")).owned_by, "nexa-runtime");
});

await check("headers", async () => {
  const { data, response } = await client.chat.completions.create({ ...ask, mood: "good" }).withResponse();
  assert.equal(response.headers.get("x-nexa-ignored"), "mood");
  assert.equal(data.choices[0].message.content, ANSWER);
});

await check("errors", async () => {
  for (const stream of [false, true]) {
    const create = (fields) => client.chat.completions.create({ ...ask, stream, ...fields });
    await assert.rejects(create({ model: "none" }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return Boolean(error.requestID);
    });
    await assert.rejects(create({ verbosity: "high" }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.code, error.param], ["unsupported_parameter", "verbosity"]);
      return true;
    });
    await assert.rejects(create({ messages: user(TOO_LONG) }), { code: "context_length_exceeded" });
  }
});
