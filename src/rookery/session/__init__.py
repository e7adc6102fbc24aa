"""One conversation: a tree of turns. The tokens are the truth, a state is a cache of them.

>>> talk = rookery.Session(model)
>>> for piece in talk.say("Hello"): print(piece, end="")
>>> talk.rewind(1); other = talk.branch(); talk.save("talk.state")
"""

from rookery.session.reply import Reply
from rookery.session.session import Session
from rookery.session.turns import Turn

__all__ = ["Reply", "Session", "Turn"]
