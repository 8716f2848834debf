"""The microworld's words and sentences in another language than English, of a script and a word order of its own."""

from dataclasses import dataclass

from datamodules.text.languages import ENGLISH, get_language


@dataclass(frozen=True)
class Wording:
    """A language's microworld; every sentence and word stands for the English one of the same place.

    Attributes:
        words: Names, things, materials and abilities.
        facts: Of each of the three steps: `{key}` and `{value}`.
        one_step_queries: Likewise, of `{key}`.
        multi_step_queries: By the number of steps.
        step: How a rationale tells a step.
        space: Between sentences.
    """

    words: tuple[tuple[str, ...], ...]
    facts: tuple[str, str, str]
    one_step_queries: tuple[str, str, str]
    multi_step_queries: dict[int, str]
    step: str
    space: str


# The verb comes last, and nothing separates words.
JAPANESE = Wording(
    words=(
        ("ミア", "トム", "アナ", "ベン", "エバ", "サム", "リア", "マックス", "ゾーイ", "イアン", "キム", "レオ"),
        ("カップ", "箱", "帽子", "鞄", "ペン", "鍵", "玩具", "瓶", "扇子", "敷物", "棒", "網"),
        ("錫", "木", "羊毛", "粘土", "骨", "金", "絹", "蝋", "鉄", "硝子", "コルク", "翡翠"),
        (
            *("浮く", "光る", "曲がる", "溶ける", "燃える", "鳴る"),
            *("輝く", "回る", "転がる", "沈む", "折れる", "割れる"),
        ),
    ),
    facts=("{key}は{value}を持っています。", "{key}は純粋な{value}です。", "{key}の物はどれも{value}ことができます。"),
    one_step_queries=(
        "{key}は何を持っていますか。",
        "{key}は何でできていますか。",
        "{key}の物は何ができますか。",
    ),
    multi_step_queries={2: "{key}は何ができますか。", 3: "{key}が持っている物は何ができますか。"},
    step="{key}から{value}に進みます。",
    space="",
)
WORDINGS = {"ja": JAPANESE}


def get_wording(language: str) -> Wording | None:
    """Returns a language's wording; None for English, whose own is the microworld's.

    Raises:
        ValueError: There is none in this language.
    """
    if language == ENGLISH:
        return None
    if language not in WORDINGS:
        raise ValueError(f"there is no microworld in {language!r}; there are {ENGLISH}, {', '.join(WORDINGS)}")
    return WORDINGS[language]


def state_answer(answer: str, language: str) -> str:
    """Returns the sentence that states an option's text, as the language's file has it."""
    return get_language(language).answers["text"].format(text=answer)
