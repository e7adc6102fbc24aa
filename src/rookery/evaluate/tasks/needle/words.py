"""Plain words that needles are named with: two make a key, as in silver-kettle."""

from __future__ import annotations

ADJECTIVES = """
ancient bold brave bright broad brown calm clear clever cold cool curious dark deep dry early empty faint fair fine
firm gentle glad golden grand grey green happy hard heavy high hollow honest kind large late light little long loud
merry narrow neat new noble old pale plain proud quick quiet red rich rough round royal sad safe sharp short silent
silver simple slow small smooth soft steady steep stiff still strange strong sweet tall tender thick thin tiny true
warm weary wet white wide wild wise yellow young
""".split()  # noqa: SIM905

NOUNS = """
air ant apple apron arm army arrow artist aunt baby baker ball band bank barn basket bath beach bead bean bear beast
bed bee bell belt bench berry bird boat body bone book boot border bottle bow bowl box boy branch bread bridge broom
brother bucket building bull bush button cabin cake camel camp candle cane cap car card carpet cart castle cat cave
chain chair chalk chapel cheese cherry chest chief child chimney church circle city clay cliff cloak clock cloth cloud
coach coal coast coat coin colour comb cook copper cord corn corner cottage cotton country cousin cow crab cradle
crane cream crow crowd crown cup curtain dance daughter day deer desert desk dinner dish dog doll door dragon drawer
dream dress duck dust ear earth egg elbow engine evening eye face fairy family farm farmer father feast feather fence
fern field fig finger fire fish flag flame flask floor flower fly fog foot forest fork fountain fox friend frog frost
fruit fur game garden garlic gate giant gift girl glass globe glove goat gold goose grain grape grass gun hair hall
hammer hand harbour hare harp hat heart hedge hen herb hill hole honey hood hook horn horse hound hour house hunter
hut ice ink iron island ivy jacket jar jewel journey judge jug juice kettle key king kitchen kite kitten knee knife
knight knot ladder lady lake lamb lamp lane leaf leather leg lemon letter lily lion lock log loom lord mantle map
maple market mask mast meadow meal meat melon metal milk mill miller mint mirror mist moon morning moss mother
mountain mouse mouth mud music nail neck needle nest net night north nose nut oak oar oil onion orchard otter oven owl
ox page paint palace palm paper party path pea peach pear pearl pen penny pepper person picture pie pig pillow pin
pine pipe planet plant plate plum pocket poet pond pony pool port pot powder prince princess prison purse queen rabbit
raft rain ram rat raven ribbon rice ring river road robe robin rock roof room root rope rose ruler sack saddle sail
sailor salt sand sandal saw scarf school sea seat seed servant shadow sheep sheet shell shepherd ship shirt shoe shop
shore shoulder silk sister skin skirt sky sleeve smoke snail snake snow soap sofa soldier song soup spade spark spice
spider spoon spring square stable star stick stone stool storm stove straw stream street string sugar summer sun swan
sword table tail tailor tea teacher tent thread throne tiger tin toad toe tongue tooth tower town toy trade train tree
trunk tub turkey turtle uncle valley vase veil velvet village vine voice wagon waist wall water wave wax week well
wheel whip whistle wife wind window wine wing winter wolf woman wood wool word worker worm yard year
""".split()  # noqa: SIM905
