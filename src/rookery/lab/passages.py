"""Thirty short texts of three topics, written for the lab: what an experiment reads when it is given nothing else.

The topic is the latent that probes look for. Every text has about eighty words, so that it fills the default ticks.
"""

from __future__ import annotations

SEA = (
    "The little boat left the harbour before the sun came up. Old Tom held the wheel and looked at the grey water. "
    "The wind was cold and smelled of salt. Far out, a gull sat on a wave and did not move. Tom let down his net "
    "and waited. When he pulled it up, it was full of silver fish. He laughed and turned the boat toward home, and "
    "the waves pushed it gently along the shore until the lamp of the harbour came in sight.",
    "Mia found a bottle on the beach after the storm. There was a letter inside, and the paper was still dry. A sailor "
    "had written it on a ship far away, in the middle of the ocean. He said that the waves were as high as a house and "
    "that he missed the land. Mia read it twice. Then she wrote an answer, put it in the bottle, and threw it back "
    "into the sea as far as she could, and watched it float away with the tide.",
    "The lighthouse stood on a black rock, and the sea was all around it. Every night the keeper climbed the long "
    "stairs and lit the great lamp. Ships saw the light and kept away from the rocks. One night there was a thick fog. "
    "The keeper rang a bell, again and again, until the morning. A captain heard the bell and turned his ship in time. "
    "The next day he sent the keeper a basket of oranges and a letter of thanks.",
    "A small crab lived in a pool between the rocks. When the tide was high, the pool was deep, and many fish came to "
    "visit. When the tide was low, the crab was alone. He did not mind. He cleaned his house and counted his shells. "
    "One day a big wave brought a starfish, who had lost her way. The crab showed her a soft place in the sand, and "
    "she stayed with him until the water came back and carried her out to the bay.",
    "The captain looked at the map and then at the stars. The ship had been at sea for forty days. The water in the "
    "barrels was almost gone, and the sailors were tired. Then a boy at the top of the mast shouted, for he had seen "
    "land. It was a green island with a white beach. They let down the anchor and rowed to the shore. The water of "
    "the stream there was cold and sweet, and they drank until they could drink no more.",
    "The whale came up to breathe, and the children on the ferry shouted. She was longer than the boat, and her back "
    "was dark and shining. She looked at them with one small eye. Then she lifted her tail out of the water and went "
    "down, slowly, into the deep. For a long time the children watched the waves. She came up once more, far away, "
    "near the islands, and blew a white cloud over the sea before the sun went down.",
    "Every summer they went to the same bay. Father taught them how to swim, and mother sat under a blue umbrella on "
    "the sand. The water was warm near the beach and cold where it was deep. Ben learned to dive and brought up "
    "a shell with a pink mouth. When he held it to his ear, he could hear the sea. In winter, at home in the city, he "
    "listened to the shell every night, and the waves came back to him.",
    "The storm broke the mast and tore the sails. The men tied themselves to the deck and prayed. Great waves rolled "
    "over the ship, and the water ran into the cabins. At dawn the wind fell. The ship was low in the water but did "
    "not sink. They made a new sail from blankets and steered to the north. Three days later a fishing boat found "
    "them and pulled them to a port, where the people stood on the pier and cheered.",
    "A boy and his grandfather built a raft of old wood and rope. They put up a sail made of a yellow sheet. The raft "
    "floated well, and they went along the coast, past the cliffs and the caves. Seals lay on the rocks and barked "
    "at them. At noon they ate bread and cheese with their feet in the water. In the afternoon the wind turned, and "
    "they came back to the beach just as the tide began to fall, wet and happy.",
    "Down under the waves there is a forest of green weed, and a small seahorse lived in it. He held on to a leaf with "
    "his tail so that the current would not take him. Big fish swam over him like clouds. One evening a diver came "
    "with a lamp. The seahorse had never seen so bright a light. He let go of his leaf and followed it up, until the "
    "water was warm and he saw the moon on the top of the sea.",
)

KITCHEN = (
    "Grandmother put on her apron and took the big bowl from the shelf. She mixed flour, butter, sugar and two eggs. "
    "Lily stirred until her arm was tired. They pressed the dough flat and cut out stars and hearts. The oven was hot, "
    "and soon the kitchen smelled sweet. When the cookies were brown, they put them on a plate to cool. Lily ate one "
    "too early and burned her tongue, but it was so good that she took another.",
    "The cook came to the palace with only a spoon and a small bag of pepper. The king was hungry and angry, for every "
    "soup tasted the same to him. The cook cut onions, carrots and a fat white fish. He let the pot boil slowly and "
    "put in the pepper at the end. The king tasted the soup and coughed. Then he smiled and asked for a second bowl, "
    "and he gave the cook the best room beside the kitchen.",
    "On Sunday father made pancakes. He broke the eggs with one hand, and some of the shell fell into the milk. Sam "
    "laughed and took it out with a fork. The butter hissed in the pan. The first pancake was too pale, and the second "
    "was too dark, but the third was round and golden. They ate it with honey and lemon. The dog sat under the table "
    "and waited, and he got the first one and the second one.",
    "The baker gets up at two in the night, when the street is dark. He lights the oven and washes his hands. The "
    "dough has been growing in its basket, and it is soft like a pillow. He cuts it and makes long loaves and round "
    "ones. He puts salt and seeds on the rolls. When the first people come to the shop, the bread is still warm, and "
    "the whole street smells of it, and the baker goes to bed.",
    "Nora wanted to make a cake for her mother. She had no sugar, so she took a jar of plum jam. She had no cream, so "
    "she took yogurt. She baked it for an hour and then looked into the oven. The cake had grown so high that it "
    "touched the top. She cut it in half and filled it with the jam. Her mother said that it was the strangest cake "
    "she had ever eaten, and the best one too.",
    "The soup had been on the stove all day. There were beans in it, and potatoes, and a bone from the butcher. Uncle "
    "Karl lifted the lid and tasted it with a wooden spoon. It needed salt, he said. Aunt Rose tasted it too, and she "
    "said it needed time. They sat down at the table, cut some bread, and argued about it until evening. Then they ate "
    "three bowls each, and there was nothing left to argue about.",
    "A mouse lived behind the stove and knew the kitchen well. She knew where the cheese was kept, and on which day "
    "the cook forgot to close the cupboard. On that day she ate until she was round. One night she found a spoon with "
    "a little chocolate on it. She had never tasted anything so sweet. She carried the spoon to her hole, but it was "
    "too long, and in the morning the cook found it in the wall and wondered.",
    "The children picked apples and brought them to the kitchen in a wheelbarrow. Mother washed them, father peeled "
    "them, and the children cut them into thin pieces. They cooked half of them with cinnamon and put the sauce into "
    "jars. The other half went into three pies. By evening all the pots were dirty, and everyone was sticky with "
    "juice. They had warm pie for supper, with milk, and nobody wanted anything else to eat.",
    "My sister burned the rice again. The pot was black, and smoke came out of the window. She opened the door and "
    "waved a towel. Then she scraped the pot and began anew, with more water and a smaller flame. She fried garlic and "
    "tomatoes in oil and put an egg on top. We sat on the floor and ate from the pan. It was hot and salty, and we "
    "forgot about the smoke and the black pot in the sink.",
    "In the market the cook touched every melon and smelled every fish. She bought mint, a bag of lemons and a "
    "chicken. At home she rubbed the chicken with oil and salt and filled it with the lemons. It roasted for two "
    "hours. The skin was crisp and brown, and the juice ran over the plate. She made a sauce of it with the mint, and "
    "the guests wiped their plates with bread and asked how it was done.",
)

FOREST = (
    "The fox stood still between the trees and listened. Snow had fallen in the night, and the forest was quiet. A "
    "mouse ran under the white leaves, and the fox could hear its feet. He jumped high and came down with his nose in "
    "the snow, but the mouse was gone. He shook his head and went on. Behind the old oak he met a deer with her fawn, "
    "and they looked at each other until a branch broke and all three ran.",
    "Deep in the woods there was an oak so wide that six children could not reach around it. An owl lived at the top, "
    "and a family of squirrels lived in the middle. Under the roots there was a badger, who slept all day. In autumn "
    "the oak dropped its acorns, and everybody had enough. When the wind blew, the tree bent a little and groaned. "
    "The owl said that it was telling old stories, but only the badger was awake to hear them at night.",
    "Anna followed the path into the forest to look for mushrooms. She found three brown ones under a birch and a red "
    "one with white spots, which she did not touch. The path grew narrow, and the trees stood close together. She saw "
    "the tracks of a wild pig in the mud. Then she heard a woodpecker, and she went toward the sound. It led her to "
    "a field where the sun was shining on the grass, and she could see the village again.",
    "The bear woke up when the snow melted from the branches. He was thin and hungry. He scratched his back on a pine "
    "and drank from the stream. There were no berries yet, so he turned over logs and ate what lived under them. A "
    "bee flew past, and he followed her to a hollow tree. The bees were angry, but the honey was sweet. He ate it all "
    "and lay down in the moss, and he slept again until the evening.",
    "A young wolf had lost his pack. He ran through the trees until it was dark, and then he sat on a rock and howled. "
    "Nobody answered but the owl. He slept under a fallen pine. In the morning he found the tracks of his mother in "
    "the wet ground beside the river. He put his nose down and ran along them, over hills and through bushes, until he "
    "heard his brothers barking. They bit his ears and rolled him in the leaves.",
    "The woodcutter did not cut the old tree. Its leaves were green, and a bird had built her nest in it. He sat down "
    "in its shade and ate an apple. A squirrel came and took the core from his hand. After that day he came back each "
    "spring to see the tree. He cut other wood, dry and dead, and carried it home on his back. When he was old, the "
    "tree was still standing, and his grandchildren climbed in its branches.",
    "In the night the rabbits came out of their holes and sat in the clearing. The moon was bright, and the grass was "
    "wet. The oldest rabbit kept watch, with her ears up. The small ones ran in circles under the ferns. When the "
    "shadow of the owl came over the trees, the old one hit the ground with her foot. In a moment the clearing was "
    "empty, and only the grass was moving. The owl flew on over the dark forest without a sound.",
    "It rained for a week, and the forest drank. The moss grew fat and green, and small frogs sat on every stone. The "
    "stream was loud and brown and carried leaves and sticks. A beaver looked at his dam and was worried. He cut down "
    "two young trees and pushed them into the gap. He worked until his teeth hurt. When the rain stopped, there was a "
    "new pond between the trees, and ducks came down and swam on it.",
    "The children built a hut of branches and covered it with ferns. They had a floor of moss and a door made of bark. "
    "A hedgehog came in and went to sleep in the corner. They gave him a name and did not wake him. All summer they "
    "played there, and they learned the songs of the birds. In autumn the ferns turned brown, and leaves fell through "
    "the roof. They covered the hedgehog with them and went home for the winter.",
    "The hunter had been following the white deer since dawn. It waited for him on each hill and then ran on between "
    "the trees. He did not know this part of the forest. The trunks were as thick as towers, and no bird was singing. "
    "At last the deer stopped beside a spring and bent down to drink. The hunter lowered his bow. He drank beside it, "
    "and when he looked up, the deer was gone, and the path lay before him.",
)

PASSAGES = tuple(
    (topic, text)
    for row in zip(SEA, KITCHEN, FOREST, strict=True)
    for topic, text in zip(("sea", "kitchen", "forest"), row, strict=True)
)
"""(topic, text), the topics in turn, so that any first few are balanced."""
