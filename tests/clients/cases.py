"""What every client asks the demo model, and what it answers at temperature 0."""

from typing import Literal

from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."

WEATHER_QUESTION = "What's the weather like in Paris?"
WEATHER = '{"city": "Paris", "temperature_c": 18, "condition": "cloudy"}'
"""What the tool answers."""
WEATHER_ANSWER = "It is 18 °C and cloudy in Paris."

PERSON_QUESTION = "Give me a JSON object with name Ana and age 30"


class Person(BaseModel):
    """What the demo model writes when asked so."""

    name: str
    age: int


class Booking(BaseModel):
    """A form that says more than the demo model knows: only its shape can be asked for."""

    guest: str = Field(max_length=12)
    day: Literal["friday", "sunday"]
    seats: int = Field(ge=1, le=12)


TOO_LONG = "one two three " * 2000
"""More than the context of the demo model."""
