"""English questions and answers from a seeded generator: grammatical, varied, and as many as needed."""

from __future__ import annotations

import random
from typing import Any

Row = dict[str, Any]


def _listed(text: str, mark: str) -> list[str]:
    return text.split(mark)


_NOUNS = _listed(
    "university library scholarship visa landlord deposit teacher laboratory seminar deadline timetable dormitory "
    "embassy consulate interview portfolio transcript certificate passport insurance hospital pharmacy bakery market "
    "station tram bicycle harbour museum orchestra theatre garden forest river valley mountain village kitchen oven "
    "recipe soup salad dough spice butter vegetable orchard harvest farmer tractor greenhouse engine battery sensor "
    "circuit turbine generator bridge tunnel motorway architect surveyor contract invoice budget account loan mortgage "
    "pension salary employer colleague manager assistant committee meeting report survey experiment sample microscope "
    "telescope planet comet satellite rocket antenna signal network server database compiler algorithm keyboard "
    "screen camera lens photograph painting sculpture novel poem essay chapter publisher translator dictionary grammar "
    "dialect accent conversation audience rehearsal melody rhythm violin piano guitar drummer coach marathon stadium "
    "tournament referee injury therapist nurse surgeon vaccine clinic laboratory allergy diet exercise meditation "
    "neighbour tenant electrician plumber carpenter ladder hammer paintbrush carpet curtain furnace thermostat",
    " ",
)
_ADJECTIVES = _listed(
    "annual careful cheap civic common complex curious daily dense detailed distant eager early eastern empty exact "
    "extra fair famous firm flexible foreign formal fragile free frequent fresh gentle global gradual grand hidden "
    "historic honest humid ideal immediate independent initial inner joint junior keen large lasting late legal likely "
    "limited local long loyal main major mild minor mobile modern modest monthly narrow national neat nearby new "
    "northern novel official old open outer partial patient permanent plain popular practical precise previous "
    "private public quick quiet rare ready recent regional regular reliable remote rich rigid rural safe second senior "
    "separate serious sharp short simple slow small smooth social solid southern spare special stable steady steep "
    "strict strong sudden suitable sunny technical temporary thick thin tidy tiny total typical urban useful vague "
    "valid visible warm weekly western wide winter wooden young",
    " ",
)
_VERBS = _listed(
    "accepts accompanies adjusts advises affects amends announces answers approves arranges assigns attracts balances "
    "borrows builds calculates cancels carries changes checks collects combines compares completes confirms connects "
    "considers controls copies covers creates decides delays delivers describes designs determines develops discusses "
    "divides documents doubles edits encourages ends enters examines exchanges expects explains extends fills follows "
    "forms gathers governs guides handles heats helps hosts identifies improves includes influences informs inspects "
    "installs introduces invites joins keeps leads lifts limits lists maintains manages marks measures mentions "
    "modifies monitors moves needs observes offers opens orders organises owns pays permits places plans praises "
    "prepares presents preserves prevents prints processes produces promotes protects proves provides publishes "
    "questions raises reaches reads receives records reduces refuses registers removes renews rents repairs replaces "
    "requires reserves restores reviews revises schedules selects sends separates serves shapes shares "
    "shows signs simplifies solves sorts splits starts stores studies suggests supplies supports surrounds suspends "
    "teaches tests tracks trades translates transports treats trusts updates uses values verifies visits warms washes "
    "watches welcomes weighs writes",
    " ",
)
_ADVERBS = _listed(
    "usually rarely gradually eventually briefly nearly formally quietly directly openly partly mostly barely deeply "
    "evenly fairly finally firmly freely gently greatly heavily hourly initially jointly largely lately mainly mildly "
    "monthly mutually neatly newly nightly normally officially originally patiently plainly possibly precisely "
    "previously privately promptly properly publicly quickly recently regularly reliably roughly safely separately "
    "sharply shortly silently simply slightly slowly smoothly socially steadily strictly suddenly thoroughly "
    "typically warmly weekly widely willingly yearly",
    " ",
)
_PLACES = _listed(
    "Oslo Lisbon Kraków Valencia Ghent Tartu Graz Bergen Porto Malmö Turin Leipzig Utrecht Galway Aarhus Lyon Split "
    "Zagreb Vilnius Riga Basel Bremen Nantes Tampere Uppsala Leuven Pisa Seville Toledo Bristol Leeds Cardiff Dundee "
    "Toronto Halifax Austin Denver Tucson Kyoto Osaka Busan Taipei Hanoi Pune Jaipur Mysore Nairobi Accra Dakar Cairo "
    "Amman Izmir Tbilisi Yerevan Almaty Lima Cusco Quito Bogotá Rosario Recife Perth Hobart Dunedin",
    " ",
)
_TIMES = _listed(
    "in early spring|after the second week|before the first lecture|at the end of the term|during a long weekend|"
    "on most weekdays|within ten working days|since the last reform|for about a month|until the contract ends|"
    "once the forms are ready|while the office is open|by the middle of June|every other Thursday|around noon|"
    "as soon as the rain stops|over the summer holidays|between two busy seasons|near the end of a shift|"
    "long before the opening|when the building is empty|throughout the whole course",
    "|",
)
_REASONS = _listed(
    "because {np} {v} {np2}|although {np} rarely {v} {np2}|so that {np} {v} {np2}|if {np} {v} {np2}|"
    "whereas {np} {v} {np2}|unless {np} {v} {np2}|and {np} {adv} {v} {np2}|since {np} {v} {np2}|"
    "provided that {np} {v} {np2}|even though {np} {v} {np2}|but {np} {v} {np2} {time}|"
    "which means that {np} {v} {np2}",
    "|",
)
_SENTENCES = _listed(
    "{Np} {adv} {v} {np2} {time}.|In {place}, {np} {v} {np2}, {reason}.|{Time}, {np} {v} {np2}.|"
    "{Np} {v} {np2}, {reason}.|Most people in {place} say that {np} {v} {np2}.|"
    "There is {an} near {place} that {adv} {v} {np2}.|{Adv}, {np} {v} both {np2} and {np3}.|"
    "Anyone with {an} knows that {np} {v} {np2}.|{Np} of {place} {v} {np2}, {reason}.|"
    "Without {an}, {np} hardly {v} {np2}.|A friend from {place} keeps {an} and {adv} {v} {np2}.|"
    "{Np} {v} {np2}; {np3} does not.|What matters {time} is that {np} {v} {np2}.|"
    "{Time} {np} {v} {np2}, {reason}.|Compared with {place}, {np} {adv} {v} {np2}.|"
    "It took a while, but now {np} {v} {np2} {time}.",
    "|",
)
_QUESTIONS = _listed(
    "How is it that {np} {v} {np2} {time}?|Does {np} near {place} still need {an} {time}?|"
    "Which {noun} should I choose when {np} {v} {np2}?|What would you do if {np} {adv} {v} {np2}?|"
    "Could you explain why {np} of {place} {v} {np2}?|Is {an} better than {an2} {time}?|"
    "My {noun} in {place} is broken and {np} {v} {np2}. Where do I begin?|"
    "I have {an} and {an2}. How do I use them {time}?|Who decides whether {np} {v} {np2} in {place}?|"
    "Why does everyone in {place} say that {np} {v} {np2}?|When will {np} be ready, {reason}?|"
    "Can {np} replace {an} {time}?",
    "|",
)
_FACTS = _listed(
    "The fee for the {noun} is {number} euros.|The {noun} opened in {year}.|It takes {number} minutes to reach the "
    "{noun}.|The {noun} has {number} seats.|You need {number} points for the {noun}.",
    "|",
)
_DECOYS = _listed(
    "Version {a}.{b}.{c} of the form is from {year}.|Order {big} was sent on {b}.{c}.{year}.|"
    "The test address is anna@example.com.|The router answers at 192.168.{a}.{b}.|Call 555-0{c}{b} in the film.|"
    "A token of thanks costs {a} euros and {b} cents.|The password has to have {b} characters.|"
    "The map has the scale 1:{big}.|Room {a}-{b}-{c} is on floor {a}.|The key hangs behind door {b}.",
    "|",
)


class English:
    """Writes rows. Two generators with one seed write the same rows."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def phrase(self) -> str:
        """A noun with an adjective."""
        return f"{self.dice.choice(_ADJECTIVES)} {self.dice.choice(_NOUNS)}"

    def word(self) -> str:
        """One word of any kind."""
        return self.dice.choice(self.dice.choice((_NOUNS, _ADJECTIVES, _VERBS, _ADVERBS)))

    def _filled(self, frame: str) -> str:
        dice, phrase = self.dice, self.phrase
        article = ("the", "each", "one", "that", "this", "your")
        reason = dice.choice(_REASONS)
        parts = {
            "np": f"{dice.choice(article)} {phrase()}",
            "np2": f"{dice.choice(article)} {phrase()}",
            "np3": f"{dice.choice(article)} {phrase()}",
            "an": f"some {phrase()}",
            "an2": f"some {phrase()}",
            "noun": dice.choice(_NOUNS),
            "v": dice.choice(_VERBS),
            "adv": dice.choice(_ADVERBS),
            "place": dice.choice(_PLACES),
            "time": dice.choice(_TIMES),
        }
        others = {
            "np": f"{dice.choice(article)} {phrase()}",
            "np2": f"{dice.choice(article)} {phrase()}",
            "v": dice.choice(_VERBS),
            "adv": dice.choice(_ADVERBS),
            "time": dice.choice(_TIMES),
        }
        parts["reason"] = reason.format(**others)
        parts |= {name.capitalize(): f"{parts[name][0].upper()}{parts[name][1:]}" for name in ("np", "adv", "time")}
        return frame.format(**parts)

    def sentence(self) -> str:
        """A statement."""
        return self._filled(self.dice.choice(_SENTENCES))

    def question(self) -> str:
        """One or two statements and a question."""
        before = [self.sentence() for _ in range(self.dice.randint(0, 2))]
        return " ".join([*before, self._filled(self.dice.choice(_QUESTIONS))])

    def decoy(self) -> str:
        """A sentence that looks a little like a secret or personal data, and is neither."""
        a, b, c = self.dice.randint(1, 9), self.dice.randint(10, 28), self.dice.randint(1, 9)
        big, year = self.dice.randint(10**5, 10**7), self.dice.randint(1950, 2025)
        return self.dice.choice(_DECOYS).format(a=a, b=b, c=c, big=big, year=year)

    def fact(self, *, is_wrong: bool) -> str:
        """A statement with a number, which follows from its subject unless it is wrong."""
        noun, frame = self.dice.choice(_NOUNS), self.dice.choice(_FACTS)
        right = sum(map(ord, noun)) % 90 + 10 + 37 * is_wrong
        return frame.format(noun=noun, number=right, year=1900 + right)

    def answer(self, sentences: int, *, is_wrong: bool = False) -> str:
        """Statements, one of them a fact."""
        said = [self.sentence() for _ in range(sentences)]
        said.insert(self.dice.randrange(1, len(said)), self.fact(is_wrong=is_wrong))
        if self.dice.random() < 0.15:
            said.insert(1, self.decoy())
        return " ".join(said)

    def row(self, *, sentences: tuple[int, int] = (5, 11), is_wrong: bool = False) -> Row:
        """A conversation of one or two questions."""
        turns = []
        for _ in range(2 if self.dice.random() < 0.3 else 1):
            turns.append({"role": "user", "content": self.question()})
            turns.append(
                {"role": "assistant", "content": self.answer(self.dice.randint(*sentences), is_wrong=is_wrong)}
            )
        return {"messages": turns}
