"""Completions and the answers that they end up with: hand-written, from the literature, and real ones."""

from datamodules.tasks.questions import Question


def ask(*choices: str, gold: str | None = None) -> Question:
    return Question("q", "t", "test", "Which?", choices or None, gold)


CANALS = ask("Michigan", "New York", "Amsterdam", "Venice", "Bridge", gold="D")
CITIES = ask("Rome", "Oslo", "London", "Paris")
LENGTHS = ask("3.5 meters", "3 meters", "35 meters", "0.35 meters")
TINS = ask("tin", "tin can", "can", "a tin roof")
POLAR = ask("True", "False")
PETS = ask("cat", "bird", "dog", "Bach")
ARTICLES = ask("the sun", "a star", "the moon", "an eclipse")
SENTENCES = ask("It rains. It pours.", "Dr. Smith went home.", "Record the details.", "It snows!")
LETTERED = ask("a rock", "an insect", "both", "A and B above")
NUMERIC = ask("1", "2", "3", "10")
MATHS = ask()
FORMULA = Question("q", "t", "test", "Which?", None, None, expression=True)

LLAMA_FIGURE = (
    "The answer is D) Venice. Venice, Italy is known for its extensive network of canals, which run through the "
    "city. A) Michigan is a state in the United States and B) New York is a city there. C) Amsterdam has canals "
    "too, but it is not in Southern Europe."
)
GPT_FIGURE = (
    "Let's evaluate the options: A) Michigan is in the United States and B) New York is too. C) Amsterdam is in "
    "Northern Europe. D) Venice is a city in Italy, which is located in Southern Europe. E) Bridge is no place. "
    "The correct answer is: D) Venice"
)

CHOICES = [
    # The paper's figure, and its like.
    (CANALS, LLAMA_FIGURE, "D"),
    (CANALS, GPT_FIGURE, "D"),
    (CANALS, "The answer is D) Venice.", "D"),
    (CANALS, "The correct answer is: D) Venice", "D"),
    (CANALS, "The correct answer is: D) Venice.", "D"),
    (CANALS, "The correct answer is D) Venice", "D"),
    (CANALS, "the answer is (D) Venice.", "D"),
    (CANALS, "The answer is D.", "D"),
    (CANALS, "The answer is E) Bridge.", "E"),
    (CITIES, "The answer is C) Paris.", "C"),
    (LENGTHS, "The answer is A) 3.5 meters.", "A"),
    # A letter only.
    (CANALS, "D", "D"),
    (CANALS, "D)", "D"),
    (CANALS, "(D)", "D"),
    (CANALS, "**D**", "D"),
    (CANALS, "D.", "D"),
    (CANALS, "D) Venice", "D"),
    (CANALS, "It has many canals.\nD) Venice", "D"),
    (CANALS, "It has many canals.\n\nD", "D"),
    # Other ways to announce it.
    (CANALS, "Answer: D", "D"),
    (CANALS, "Answer: (D)", "D"),
    (CANALS, "Answer:\nD) Venice", "D"),
    (CANALS, "Final Answer: D) Venice", "D"),
    (CANALS, "Final answer (one letter): D", "D"),
    (CANALS, "Thus, the correct option is (d).", "D"),
    (CANALS, "Hence, option (d) is correct.\n\n# Solution\nans = ['a', 'b']", "D"),
    (CANALS, "The correct answer is option D.", "D"),
    (CANALS, "The best choice would be D, because Venice has canals.", "D"),
    (CANALS, "The answer is D because it has canals.", "D"),
    (CANALS, "The answer is D - Venice.", "D"),
    (CANALS, "The answer is D Venice", "D"),
    (CANALS, "Therefore, the answer must be Venice.", "D"),
    (CANALS, "The answer to the question of where there is water is D.", "D"),
    (CANALS, "The correct answer choice is D.", "D"),
    (CANALS, "I would choose D) Venice.", "D"),
    (CANALS, "Option D is correct.", "D"),
    (CANALS, "So (D) Venice is the most likely answer. Option A is too cold.", "D"),
    (CANALS, "D is the correct answer.", "D"),
    (CANALS, "Venice is the right answer, since A is a state.", "D"),
    (CITIES, "C) Paris is the correct answer.", "C"),
    (CANALS, "The answer is **D) Venice**.", "D"),
    (CANALS, "**Answer:** D", "D"),
    (CANALS, "**Answer: (D) Venice**", "D"),
    (CANALS, "### Answer: `D`", "D"),
    (CANALS, 'The answer is "Venice".', "D"),
    (CANALS, r"The final answer is $\boxed{D}$.", "D"),
    (CANALS, r"\boxed{\text{D) Venice}}", "D"),
    (CANALS, r"So we get \boxed{D}. It was easy, since A is in America.", "D"),
    # What is not an answer.
    (CANALS, "The answer is not A.", None),
    (CANALS, "The answer is not A) Michigan.", None),
    (CANALS, "The answer isn't Michigan.", None),
    (CANALS, "Option A is not correct.", None),
    (CANALS, "A is the wrong answer.", None),
    (CANALS, "Option B is incorrect.", None),
    (CANALS, "The answer is A or B.", None),
    (CANALS, "The answer is A, B and C.", None),
    (CANALS, "The answer is F) Lagos.", None),
    (CANALS, "The answer choices are:\nA) Michigan\nB) New York\nC) Amsterdam\nD) Venice\nE) Bridge", None),
    (CANALS, "Step 3: Analyze answer choice A: Michigan is cold. Venice and Amsterdam remain.", None),
    (CANALS, "Evaluate the options: A: a state. B: a city.", None),
    (CANALS, "Option A: Michigan has lakes. Option E: Bridge spans canals. So it is Venice.", "D"),
    (CANALS, "", None),
    (CANALS, "Let's think step by step.", None),
    # Which statement counts.
    (CANALS, "It might seem that the answer is A. But no, the answer is D.", "D"),
    (CANALS, "The answer is C) Amsterdam. Wait, that lies in the north. Option D is correct.", "D"),
    (CANALS, "The canals are in Venice. Michigan is not in Europe.", "D"),
    (CANALS, "Michigan is a state. There are canals in Venice.", "D"),
    (CANALS, "Both Venice and Amsterdam have canals.", None),
    # Options that contain each other, repeat a letter, or are sentences.
    (TINS, "The answer is tin.", "A"),
    (TINS, "The answer is tin can.", "B"),
    (TINS, "The answer is a tin can.", "B"),
    (TINS, "The answer is tin roof.", "D"),
    (TINS, "So it is kept in a tin can.", "B"),
    (TINS, "So it is kept in a can.", "C"),
    (PETS, "The answer is A dog because it barks.", "C"),
    (PETS, "The answer is a dog.", "C"),
    (PETS, "The answer is Bach.", "D"),
    (PETS, "The answer is a) cat.", "A"),
    (PETS, "A dog is the best answer.", "C"),
    (PETS, "The answer is doghouse.", None),
    (ARTICLES, "The answer is sun.", "A"),
    (ARTICLES, "The answer is the star.", "B"),
    (ARTICLES, "The answer is: A", "A"),
    (SENTENCES, "The answer is A) It rains. It pours.", "A"),
    (SENTENCES, "The answer is Dr. Smith went home.", "B"),
    (SENTENCES, "The answer is C) Record the details.", "C"),
    (LENGTHS, "The answer is 3.5 meters.", "A"),
    (LENGTHS, "The answer is 3 meters.", "B"),
    (LENGTHS, "The answer is (D) 0.35 meters, not 3.5.", "D"),
    (LETTERED, "The answer is A and B above.", "D"),
    (LETTERED, "The answer is D) A and B above.", "D"),
    (NUMERIC, "The answer is 10.", "D"),
    (NUMERIC, "The answer is 1.", "A"),
    (ask("B", "A"), "The answer is B) A.", "B"),
    (ask("B", "A"), "The answer is A.", "B"),
    (ask("bridge", "bridge"), "The answer is bridge.", None),
    (ask("bridge", "bridge"), "The answer is B) bridge.", "B"),
    # Several announced at once are none.
    (CANALS, "so the answer is (c) or (d).", None),
    (CANALS, "The answer is (a), (b), and (c).", None),
    (CANALS, "The answer is either C or D.", None),
    (CANALS, "So the answer is either a,b or c.", None),
    (CANALS, "The answer is both A and C.", None),
    (CANALS, "The answer is A/B.", None),
    (CANALS, "The answer is A & B.", None),
    (CANALS, "The answer is A and/or B.", None),
    (CANALS, "The answer is A as well as B.", None),
    (CANALS, "The answer is B) New York or D) Venice.", None),
    (CANALS, "The answer is Venice or Amsterdam.", None),
    (CANALS, "The answer is D. Or maybe C.", None),
    (CANALS, "**Answer:** (C) Amsterdam and (D) Venice", None),
    (CANALS, "Answer: C, D", None),
    (CANALS, "The correct answers are (c) and (d).", None),
    (CANALS, "Options C and D are correct.", None),
    (CANALS, "C or D is correct.", None),
    (CANALS, "Neither A nor B is correct.", None),
    (CANALS, "The answer is between C and D.", None),
    (CANALS, r"\boxed{C} or \boxed{D}", None),
    (CANALS, r"\boxed{C, D}", None),
    (CANALS, "The answer is C. In fact the answer is C or D.", None),
    (CANALS, "The answer is C or D. Option D is correct.", "D"),
    (POLAR, "The answer is true or false.", None),
    # But not what is said about another one.
    (CANALS, "The answer is D) Venice, not C) Amsterdam.", "D"),
    (CANALS, "The answer is Venice and not Amsterdam.", "D"),
    (CANALS, "The answer is D, C is too far north.", "D"),
    (CANALS, "The answer is Venice, and Amsterdam is too far north.", "D"),
    (CANALS, "The answer is D because A and B are in America.", "D"),
    (CANALS, "Amsterdam is north, Venice is the best answer.", "D"),
    (CANALS, "The answer is probably D.", "D"),
    (CANALS, "The answers are D.", "D"),
    (ask("bread", "butter", "bread and butter"), "The answer is bread and butter.", "C"),
    (ask("bridge", "Bridge!"), "The answer is bridge.", None),
    # More lines.
    (CANALS, "Step 1: Venice is in Italy.\nStep 2: Italy is south.\n\nThe answer is\n\nD) Venice", "D"),
    (CANALS, "The answer is D) Venice.\n\nQuestion: Where is the sea?\nA) here", "D"),
]

BOOLEANS = [
    (POLAR, "The answer is True.", "A"),
    (POLAR, "The answer is B) False.", "B"),
    (POLAR, "Therefore, the answer is false.", "B"),
    (POLAR, "So the answer is yes.", "A"),
    (POLAR, "So the answer is no.", "B"),
    (POLAR, "No, you cannot buy watches there.", "B"),
    (POLAR, "There is no evidence for it.", None),
    (ask("Yes", "No"), "The answer is true.", "A"),
    # A letter or a text only.
    (POLAR, "True", "A"),
    (POLAR, "False", "B"),
    (POLAR, "true", "A"),
    (POLAR, "FALSE", "B"),
    (POLAR, "True.", "A"),
    (POLAR, "**False**", "B"),
    (POLAR, "A", "A"),
    (POLAR, "B)", "B"),
    (POLAR, "(A)", "A"),
    (POLAR, "A) True", "A"),
    (POLAR, "B) False.", "B"),
    # Announced.
    (POLAR, "The answer is A.", "A"),
    (POLAR, "The answer is B", "B"),
    (POLAR, "The answer is A) True.", "A"),
    (POLAR, "The answer is (B) False.", "B"),
    (POLAR, "The answer is: True", "A"),
    (POLAR, "The answer is: **False**", "B"),
    (POLAR, "Answer: True", "A"),
    (POLAR, "Answer: B", "B"),
    (POLAR, "Answer:\nFalse", "B"),
    (POLAR, "**Answer:** True", "A"),
    (POLAR, "Final answer: False", "B"),
    (POLAR, "### Answer: `True`", "A"),
    (POLAR, "The correct answer is: B) False", "B"),
    (POLAR, "The correct answer is A) True", "A"),
    (POLAR, "The correct option is B.", "B"),
    (POLAR, "So the answer must be False.", "B"),
    (POLAR, 'The answer is "True".', "A"),
    (POLAR, "The final answer is $\\boxed{B}$.", "B"),
    (POLAR, "\\boxed{\\text{True}}", "A"),
    (POLAR, "Thus, the answer is (b) False", "B"),
    (POLAR, "The answer is A because it is true.", "A"),
    (POLAR, "The answer is True - he did.", "A"),
    (POLAR, "The answer is B, as he did not.", "B"),
    # Yes and no.
    (POLAR, "Yes.", "A"),
    (POLAR, "No.", "B"),
    (POLAR, "yes", "A"),
    (POLAR, "no", "B"),
    (POLAR, "Yes, because it fits.", "A"),
    (POLAR, "No, it does not fit.", "B"),
    (POLAR, "The answer is Yes, since it fits.", "A"),
    (POLAR, "Therefore, the answer is no.", "B"),
    (POLAR, "Answer: Yes", "A"),
    (POLAR, "Answer: No", "B"),
    (ask("Yes", "No"), "The answer is B) No.", "B"),
    (ask("Yes", "No"), "False", "B"),
    (ask("no", "yes"), "The answer is yes.", "B"),
    # Verdicts.
    (POLAR, "Option A is correct.", "A"),
    (POLAR, "B is the correct answer.", "B"),
    (POLAR, "Option B is correct, since he was dead.", "B"),
    (POLAR, "So (A) True is the right answer.", "A"),
    (POLAR, "I would choose B) False.", "B"),
    # Real completions on StrategyQA: human, GPT-4o, LLaMA-3-70B, GPT-3.5.
    (POLAR, "Khan had sixteen children. The answer is True", "A"),
    (POLAR, "They were not law enforcement officers. The answer is False", "B"),
    (POLAR, "Thus, a dog would likely respond to a bell before a Grey seal. The answer is True", "A"),
    (POLAR, "Therefore, they could not perform lawful arrests. The answer is False", "B"),
    (POLAR, 'Therefore, the statement "Hydrogen\'s atomic number squared exceeds it" is false.', "B"),
    # The last line or sentence.
    (POLAR, "Therefore, the statement is true.", "A"),
    (POLAR, "So the statement is False.", "B"),
    (POLAR, "It has canals. So it is true.", "A"),
    (POLAR, "Khan had sons.\n\nTrue", "A"),
    (POLAR, "Khan had sons.\n\nB", "B"),
    (POLAR, "Khan had sons.\nB) False", "B"),
    (POLAR, "Khan had sons.\n**A) True**", "A"),
    # Which statement counts.
    (POLAR, "It might seem that the answer is True. But the answer is False.", "B"),
    (POLAR, "The answer is B. Wait, he lived. Option A is correct.", "A"),
    (POLAR, "At first it looks false. The answer is True.", "A"),
    (POLAR, "True or not, the answer is False.", "B"),
    (POLAR, "The answer is False.\n\nQuestion: Is it red?\nA) True", "B"),
    # What is not an answer.
    (POLAR, "The answer is not A.", None),
    (POLAR, "Option A is not correct.", None),
    (POLAR, "B is the wrong answer.", None),
    (POLAR, "The answer is A or B.", None),
    (POLAR, "The answer is C.", None),
    (POLAR, "The answer is maybe.", None),
    (POLAR, "Let us see.", None),
    (POLAR, "", None),
    (POLAR, "Nothing is known about it.", None),
    (POLAR, "The options are:\nA) True\nB) False", None),
    (POLAR, "Say whether it is true or false.", None),
]
