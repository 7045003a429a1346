// What both scripts share: the questions, one line per check, and a process that fails when a check did.
// A client that wants to go beyond this machine is refused, and fails the check.

import assert from "node:assert/strict";
import { z } from "zod";

export const baseURL = `${process.env.NEXA_URL}/v1`;

export const QUESTION = "What is the capital of France?";
export const ANSWER = "The capital of France is Paris.";
export const WEATHER_QUESTION = "What's the weather like in Paris?";
export const WEATHER = '{"city": "Paris", "temperature_c": 18, "condition": "cloudy"}';
export const WEATHER_ANSWER = "It is 18 °C and cloudy in Paris.";
export const PERSON_QUESTION = "Give me a JSON object with name Ana and age 30";
export const Person = z.object({ name: z.string(), age: z.number().int() });
export const ANA = { name: "Ana", age: 30 };
export const City = z.object({ city: z.string().describe("The name of the city") });
export const TOO_LONG = "one two three ".repeat(2000);

const outside = [];
const fetchHere = globalThis.fetch;
globalThis.fetch = (input, init) => {
  const url = new URL(input instanceof Request ? input.url : input);
  if (url.origin !== process.env.NEXA_URL) {
    outside.push(url.href);
    throw new Error(`${url.href} is not the server.`);
  }
  return fetchHere(input, init);
};

export const checksOf = (client) => async (name, body) => {
  try {
    await body();
    assert.deepEqual(outside, []);
    console.log(`ok      ${client}: ${name}`);
  } catch (error) {
    console.log(`FAILED  ${client}: ${name}\n${error.stack}`);
    process.exitCode = 1;
  }
};

export function assertNear(left, right) {
  assert.equal(left.length, right.length);
  left.forEach((value, index) => assert.ok(Math.abs(value - right[index]) < 1e-5));
}
