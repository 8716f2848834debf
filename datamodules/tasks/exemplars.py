r"""Worked examples of few-shot prompts, written for this project; none is from a benchmark."""

from datamodules.tasks.questions import AnswerKind, Question

# For each kind of answer: the question, its options or None, the reasoning, and the answer.
_EXAMPLES: dict[AnswerKind, list[tuple[str, tuple[str, ...] | None, str, str]]] = {
    "choice": [
        (
            "Mia wants to keep her soup hot until lunch. What should she carry it in?",
            ("paper bag", "vacuum flask", "glass bowl", "metal spoon"),
            "To keep soup hot, heat must not escape. Paper, glass and metal let heat through. A vacuum flask has an "
            "empty layer that heat hardly crosses.",
            "B",
        ),
        (
            "What happens to a puddle on a sunny day?",
            ("it freezes", "it grows", "it evaporates", "it turns to sand", "it burns"),
            "The sun warms the water of the puddle. Warm water turns into vapour and rises into the air. So the "
            "puddle becomes smaller until it is gone.",
            "C",
        ),
        (
            "Where would you most likely find a librarian at work?",
            ("among bookshelves", "on a fishing boat", "in a quarry"),
            "A librarian looks after books and lends them. Books stand on bookshelves. Neither a boat nor a quarry "
            "has many books.",
            "A",
        ),
        (
            "Tom forgot his umbrella and it rained all day. How did his coat most likely feel in the evening?",
            ("dusty", "dry", "warm", "wet"),
            "Without an umbrella, the rain fell on Tom's coat. Cloth that rain falls on takes up water. So the coat "
            "was full of water.",
            "D",
        ),
    ],
    "boolean": [
        (
            "Could a penguin meet a polar bear in the wild?",
            ("True", "False"),
            "Penguins live in the southern half of the world. Polar bears live around the North Pole. So their homes "
            "are far apart, and they do not meet in the wild.",
            "B",
        ),
        (
            "Would a bicycle fit into a garage that was built for a car?",
            ("True", "False"),
            "A garage for a car is longer and wider than a car. A bicycle is smaller than a car. So it fits.",
            "A",
        ),
        (
            "Did anyone write letters before the telephone was invented?",
            ("True", "False"),
            "The telephone was invented in the nineteenth century. Letters were already written in antiquity. So "
            "people wrote letters before.",
            "A",
        ),
        (
            "Is a kilogram of feathers lighter than a kilogram of iron?",
            ("True", "False"),
            "A kilogram is a measure of mass. Both have the same mass of one kilogram. So neither is lighter.",
            "B",
        ),
    ],
    "number": [
        (
            "A baker makes 6 trays of 8 rolls and sells 31 rolls. How many rolls are left?",
            None,
            "The baker makes 6 * 8 = 48 rolls. After selling 31, there are 48 - 31 = 17 rolls.",
            "17",
        ),
        (
            "Ines reads 14 pages a day. Her book has 98 pages. After how many days has she finished it?",
            None,
            "Each day she reads 14 pages. 98 / 14 = 7, so she needs 7 days.",
            "7",
        ),
        (
            "A ticket costs $2.50 for a child and twice as much for an adult. What do 2 adults and 3 children pay?",
            None,
            "An adult pays 2 * 2.50 = 5 dollars. Two adults pay 2 * 5 = 10 dollars and three children pay "
            "3 * 2.50 = 7.50 dollars. Together that is 10 + 7.50 = 17.50 dollars.",
            "17.5",
        ),
        (
            "Ken is 9 years older than Lou. In 4 years Lou will be 15. How old is Ken now?",
            None,
            "Lou is 15 - 4 = 11 years old now. Ken is 9 years older, so he is 11 + 9 = 20.",
            "20",
        ),
    ],
    "expression": [
        (
            r"Solve $3x + 2 = 4$ for $x$.",
            None,
            r"Subtract 2 from both sides: $3x = 2$. Divide by 3: $x = \frac{2}{3}$.",
            r"\frac{2}{3}",
        ),
        (
            r"A square has area 18. How long is its side?",
            None,
            r"The side is the root of the area: $\sqrt{18} = \sqrt{9 \cdot 2} = 3\sqrt{2}$.",
            r"3\sqrt{2}",
        ),
        (
            r"Factor $x^2 - 9$ completely.",
            None,
            r"This is a difference of squares, $x^2 - 3^2$, which is $(x-3)(x+3)$.",
            r"(x-3)(x+3)",
        ),
        (
            r"How many ways are there to arrange three different books on a shelf?",
            None,
            r"There are 3 books for the first place, 2 for the second and 1 for the third: $3 \cdot 2 \cdot 1 = 6$.",
            r"6",
        ),
    ],
}
EXEMPLARS: dict[AnswerKind, list[tuple[Question, str, str]]] = {
    kind: [
        (
            Question(f"{kind}-{number}", "exemplars", "train", text, choices, answer, expression=kind == "expression"),
            reasoning,
            answer,
        )
        for number, (text, choices, reasoning, answer) in enumerate(examples)
    ]
    for kind, examples in _EXAMPLES.items()
}
