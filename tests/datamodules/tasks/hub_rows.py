"""Hand-made rows of the hub's schema, for every task of configs/tasks."""

LABELLED = {"text": ["cat", "dog", "fish", "bird"], "label": ["A", "B", "C", "D"]}
FIVE = {"text": ["cat", "dog", "fish", "bird", "fly"], "label": ["A", "B", "C", "D", "E"]}
# For each task: a split, rows as the hub has them, and of each question the text, the options and the gold answer.
ROWS: dict[str, tuple[str, list[dict], list[tuple[str, tuple | None, str | None]]]] = {
    "openbookqa": (
        "train",
        [{"id": "7-980", "question_stem": "It barks: ", "choices": LABELLED, "answerKey": "B"}],
        [("It barks:", ("cat", "dog", "fish", "bird"), "B")],
    ),
    "commonsense_qa": (
        "validation",
        [{"id": "1a", "question": "It flies?", "question_concept": "fly", "choices": FIVE, "answerKey": "E"}],
        [("It flies?", ("cat", "dog", "fish", "bird", "fly"), "E")],
    ),
    "arc_easy": (
        "test",
        [
            {"id": "M1", "question": "Which?", "choices": LABELLED, "answerKey": "D"},
            {
                "id": "M2",
                "question": "2 + 1?",
                "choices": {"text": ["4", "3", "2"], "label": ["1", "2", "3"]},
                "answerKey": "2",
            },
        ],
        [("Which?", ("cat", "dog", "fish", "bird"), "D"), ("2 + 1?", ("4", "3", "2"), "B")],
    ),
    "arc_challenge": (
        "train",
        [{"id": "M1", "question": "Which?", "choices": FIVE, "answerKey": "E"}],
        [("Which?", ("cat", "dog", "fish", "bird", "fly"), "E")],
    ),
    "piqa": (
        "validation",
        [
            {"goal": "dresser", "sol1": "drawer", "sol2": "pin ", "label": 1},
            {"goal": "boil", "sol1": "heat", "sol2": "cool", "label": 0},
        ],
        [("dresser", ("drawer", "pin"), "B"), ("boil", ("heat", "cool"), "A")],
    ),
    "social_iqa": (
        "train",
        [
            {
                "context": "Kai fell.",
                "question": "How does Kai feel?",
                "answerA": "hurt",
                "answerB": "proud",
                "answerC": "rich",
                "label": "1",
            }
        ],
        [("Kai fell. How does Kai feel?", ("hurt", "proud", "rich"), "A")],
    ),
    "strategyqa": (
        "test",
        [
            {"qid": "b8", "term": "Khan", "description": "", "question": "Is it so?", "answer": False, "facts": "No."},
            {"qid": "b9", "term": "Khan", "description": "", "question": "Is it?", "answer": True, "facts": "Yes."},
        ],
        [("Is it so?", ("True", "False"), "B"), ("Is it?", ("True", "False"), "A")],
    ),
    "boolq": (
        "validation",
        [{"question": "do they speak it", "answer": True, "passage": "They speak it."}],
        [("They speak it.\ndo they speak it?", ("True", "False"), "A")],
    ),
    "gsm8k": (
        "train",
        [{"question": "How many?", "answer": "48/2 = <<48/2=24>>24 in May.\n#### 1,024"}],
        [("How many?", None, "1024")],
    ),
    "svamp": (
        "test",
        [
            {
                "ID": "chal-1",
                "Body": "A pack costs 76",
                "Question": "How much is it?",
                "Equation": "( 76.0 )",
                "Answer": "76.0",
                "Type": "x",
            },
            {
                "ID": "chal-2",
                "Body": "Is it so? It is 3.5.",
                "Question": "How much?",
                "Equation": "",
                "Answer": "3.50",
                "Type": "x",
            },
        ],
        [("A pack costs 76. How much is it?", None, "76"), ("Is it so? It is 3.5. How much?", None, "3.5")],
    ),
    "multiarith": ("train", [{"question": "How many?", "final_ans": "33"}], [("How many?", None, "33")]),
    "aqua_rat": (
        "test",
        [
            {
                "question": "Speed?",
                "options": ["A)21", "B)21.5", "C)22", "D)22.5", "E)none"],
                "rationale": "So E.",
                "correct": "E",
            }
        ],
        [("Speed?", ("21", "21.5", "22", "22.5", "none"), "E")],
    ),
    "hendrycks_math": (
        "train",
        [
            {"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{\dfrac{1}{2}}$."},
            {"problem": "Set?", "level": "Level 1", "type": "Algebra", "solution": r"$\boxed{1}$? \boxed{\{x^{2}\}}"},
        ],
        [("Half?", None, "0.5"), ("Set?", None, r"\{x^2\}")],
    ),
    "mgsm": (
        "test",
        [
            {
                "question": "Wie viele?",
                "answer": None,
                "answer_number": 70000,
                "equation_solution": None,
            }
        ],
        [("Wie viele?", None, "70000")],
    ),
    "msvamp": ("test", [{"m_query": "Wie viele?", "response": "8.0"}], [("Wie viele?", None, "8")]),
    "xcopa": (
        "validation",
        [
            {
                "premise": "Ese oli mullikilesse mässitud.",
                "choice1": "See oli õrn.",
                "choice2": "See oli väike.",
                "question": "cause",
                "label": 0,
                "idx": 7,
                "changed": False,
            }
        ],
        [("Ese oli mullikilesse mässitud sest", ("See oli õrn.", "See oli väike."), "A")],
    ),
    "belebele": (
        "test",
        [
            {
                "link": "https://en.wikibooks.org/x",
                "question_number": 2,
                "flores_passage": "Es regnet.",
                "question": "Was fällt?",
                "mc_answer1": "Schnee",
                "mc_answer2": "Regen",
                "mc_answer3": "Laub",
                "mc_answer4": "Licht",
                "correct_answer_num": "2",
                "dialect": "deu_Latn",
            }
        ],
        [("Es regnet.\nWas fällt?", ("Schnee", "Regen", "Laub", "Licht"), "B")],
    ),
    "xcsqa": (
        "validation",
        [{"id": "b1", "lang": "de", "question": {"stem": "Was fliegt?", "choices": FIVE}, "answerKey": "E"}],
        [("Was fliegt?", ("cat", "dog", "fish", "bird", "fly"), "E")],
    ),
    "jcommonsenseqa": (
        "train",
        [{"q_id": 3, "question": "鳴くのは？", **{f"choice{n}": f"犬{n}" for n in range(5)}, "label": 4}],
        [("鳴くのは？", ("犬0", "犬1", "犬2", "犬3", "犬4"), "E")],
    ),
    "global_mmlu_lite": (
        "test",
        [
            {
                "sample_id": "law/test/3",
                "subject": "law",
                "question": "Was gilt?",
                "option_a": "a",
                "option_b": "b",
                "option_c": "c",
                "option_d": "d",
                "answer": "C",
            }
        ],
        [("Was gilt?", ("a", "b", "c", "d"), "C")],
    ),
    "mmlu_prox": (
        "test",
        [
            {
                "question_id": 70,
                "question": "Was gilt?",
                **{f"option_{n}": f"Text {n}" if n < 3 else None for n in range(10)},
                "answer": "C",
                "answer_index": 2,
            }
        ],
        [("Was gilt?", ("Text 0", "Text 1", "Text 2"), "C")],
    ),
    "arc_multilingual": (
        "test",
        [
            {
                "id": "Mercury_1",
                "instruction": "Was?",
                "option_a": "eins",
                "option_b": "zwei",
                "option_c": "drei",
                "option_d": "vier",
                "option_e": None,
                "answer": "D",
            }
        ],
        [("Was?", ("eins", "zwei", "drei", "vier"), "D")],
    ),
}
