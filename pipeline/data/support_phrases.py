"""What customers of an online shop write, as patterns: the words behind `generate.support_intents`.

In a pattern `[a|b|]` is one of the alternatives (an empty one included) and `{slot}` one of the slot's values.
Alternatives may hold slots, not other alternatives. Some intents are near neighbours on purpose (a late parcel, a
lost parcel and the question where it is), and the background sentences name things that other intents are about,
so that a model has to read rather than look for one word.
"""

INTENTS: dict[str, tuple[str, ...]] = {
    "track order": (
        "[where is|where's] my [order|parcel|package|{item}][ right now| at the moment|]",
        "[can you|could you|please] [check|tell me] where my [order|parcel|{item}] is",
        "how [far|close] is my [delivery|package|parcel] [now|today|]",
        "[i'd like to|i want to|how can i] track [order {order}|my parcel|the shipment of my {item}]",
        "[what's the status|status] of [order {order}|my shipment|my {item} order]",
        "has [order {order}|my {item}|my parcel] [been shipped|left the warehouse|gone out] yet",
        "is there a tracking [link|number|code] for [order {order}|my {item}]",
    ),
    "late delivery": (
        "my [order|parcel|{item}] [should have come|was due|was supposed to be here] [{past}|days ago]",
        "[order {order}|my delivery|my {item}] is [late|overdue|delayed|running late][ again|]",
        "why is my [delivery|parcel|{item}] taking so long",
        "still [waiting for|no sign of] my {item}, it was promised for {past}",
        "you said [two|three|five] days but [it's been over a week|my {item} still isn't here]",
        "the delivery date [passed|was {past}] and [nothing came|i have nothing]",
    ),
    "lost parcel": (
        "tracking says delivered but [i never got it|there is nothing here|my {item} isn't here]",
        "i think [my parcel|my {item}|order {order}] [got lost|is lost|went missing] [in the post|on the way|]",
        "[somebody stole|someone took] [my parcel|the {item}] from [my porch|the hallway|the doorstep]",
        "the courier says he [left|dropped] my {item} [with a neighbour|outside] but [no one has it|it is gone]",
        "it is marked as delivered [{past}|] and [i have received nothing|the parcel is nowhere]",
    ),
    "missing item": (
        "the {item} was [missing from|not in] the [box|parcel]",
        "[only part|half] of [order {order}|my order] [came|arrived], where is the {item}",
        "i ordered {number} [things|{item}s] and got [one less|only one]",
        "[the box|my parcel] came without the [{item}|charger|manual|screws]",
        "there [was|is] something missing [in|from] my [order|delivery][, the {item}|]",
    ),
    "wrong item": (
        "you sent [me the wrong|a different] {item}",
        "[i got|i received|there was] a {other} instead of [the|my] {item}",
        "this is not the {item} [i ordered|i paid for|from the picture]",
        "the {item} is [the wrong colour|the wrong size|{colour} and not {colour2}]",
        "[wrong product|wrong article|somebody else's order] in [my box|order {order}|the parcel]",
    ),
    "damaged item": (
        "my {item} [arrived|came] [broken|cracked|scratched|smashed|with a dent]",
        "the {item} was damaged [in transit|on arrival|when i opened the box]",
        "there is a [crack|hole|big scratch|tear] in the {item}[ i just got|]",
        "the [glass|screen|lid|handle] of the {item} is [broken|smashed|bent][ right out of the box|]",
        "[the box was crushed|the parcel got wet] and the {item} is [ruined|in pieces]",
    ),
    "faulty product": (
        "my {item} [stopped working|won't turn on|died] [after {duration}|]",
        "the {item} [doesn't work|is defective|keeps switching itself off]",
        "[the|my] {item} makes a [strange|grinding|loud] noise and [stops|then nothing happens]",
        "i can't get the {item} to [start|charge|connect]",
        "[battery|motor|button] of the {item} is [dead|not working] after {duration}",
    ),
    "cancel order": (
        "[i want to|i need to|please|can i] cancel [order {order}|my order|the {item} i ordered]",
        "[stop|don't ship] [order {order}|my {item}], i [changed my mind|don't need it any more]",
        "[i ordered the {item} by mistake|ordered twice by accident], please [call it off|cancel one]",
        "is it too late to [cancel|call off|stop] [the order|order {order}]",
        "[i no longer want|forget about] the {item} i ordered {past}, it hasn't shipped",
    ),
    "change order": (
        "can i [change|edit|modify] [order {order}|what i ordered|my order][ before it ships|]",
        "[add|put] [another {item}|a {other}] [to|into] [order {order}|my order]",
        "i [ordered|picked] the {colour} {item} but want the {colour2} one, [can you switch it|it isn't sent yet]",
        "[please swap|replace] the {item} [in|on] [order {order}|my open order] [for|with] a {other}",
        "i need {number} instead of one {item} in [the order|order {order}]",
    ),
    "change delivery address": (
        "[please send|can you ship|deliver] [order {order}|my {item}] to [my office|another address|{city} instead]",
        "i [typed|entered|gave] the wrong [address|street|house number|postcode] [for order {order}|at checkout]",
        "[change|update|correct] the [shipping|delivery] address [of order {order}|on my order|please]",
        "[i'm moving to {city}|i won't be home], [can my order go somewhere else|where can i change where it goes]",
        "the [flat|house] number [is missing|is wrong] on [my order|order {order}|the label]",
    ),
    "delivery options": (
        "do you [ship|deliver|send] to [{city}|my country|islands|a parcel locker]",
        "[can i|is it possible to] [collect|pick up] [my order|the {item}] [in a shop|myself|in {city}]",
        "which [couriers|carriers|delivery companies] do you use",
        "do you [deliver|offer delivery] on [saturdays|sundays|the weekend|public holidays]",
        "[is there|do you have] [express|next day|same day] [delivery|shipping]",
        "how [long|many days] does [delivery|shipping] to {city} [usually|normally|] take",
    ),
    "shipping cost": (
        "how much [is|does] [shipping|delivery|postage] [to {city}|for a {item}|cost]",
        "[is|do you have] free [shipping|delivery] [above|over] [{amount}|a certain amount]",
        "[what do you charge|what are the fees] for [sending|delivering|express delivery of] a {item}",
        "why [is|was] the [postage|delivery fee|shipping] so [high|expensive]",
        "do i [pay|have to pay] for delivery [if i order {number} {item}s|to {city}]",
    ),
    "return item": (
        "[i want to|how do i|can i] [return|send back|give back] [the {item}|my {item}|something i bought]",
        "the {item} [doesn't fit|isn't what i expected|looks different], i want to [send it back|return it]",
        "where [do i|can i] [get|print|find] a return [label|form][ for order {order}|]",
        "[start|open|request] a return for [order {order}|the {item}]",
        "[which address|where] do i send [a return|the {item}] back to",
    ),
    "return policy": (
        "how [long|many days] do i have to [return|send back] [something|an item|a {item}]",
        "[what's|tell me] your [return policy|policy on returns]",
        "can [opened|used|worn|reduced] [items|goods|{item}s] be returned",
        "[who pays|do i pay] for return [postage|shipping]",
        "[is|are] [a {item}|sale items|gifts] [excluded from returns|returnable]",
    ),
    "exchange item": (
        "[can i|i'd like to] exchange [my|the] {item} for [a larger|a smaller|another] [size|one]",
        "the {item} is too [small|big|tight|short], [do you swap sizes|i need the next size]",
        "[swap|trade] [my|this] {item} [for|against] a {colour} one, [mine arrived {past}|i already have it here]",
        "[same {item}|this {item}] in {colour} please, i'll send [mine|the old one] back",
        "is an exchange [possible|allowed] for [a {item}|order {order}]",
    ),
    "refund status": (
        "[where is|when do i get|i'm waiting for] my [refund|money back][ for the {item}|]",
        "i [sent back|returned] the {item} {past} and [haven't been refunded|see no money]",
        "[how long|how many days] [does a refund|until a refund] [take|takes]",
        "has [my refund|the refund for order {order}] been [processed|paid out|sent]",
        "the [refund|{amount} you owe me] [isn't|is not] [on my account|on my card] yet",
    ),
    "request refund": (
        "i [want|demand|would like] [my money back|a refund] for [the {item}|order {order}]",
        "[please|can you] refund [me|order {order}|the {item}]",
        "[give me back|pay me back] [the {amount}|what i paid][ for the {item}|]",
        "[am i entitled to|can i have] [my money|a refund|a full refund] [if|since] the {item} is useless",
        "not happy with the {item}, i want [to be refunded|my money back]",
    ),
    "double charge": (
        "[i was|you] charged [me |]twice for [order {order}|the {item}|one order]",
        "there are two [payments|charges|debits] [of {amount}|] on my [card|statement|account]",
        "[you took|my bank shows] {amount} [two times|twice]",
        "my card was [billed|debited] double [{past}|for a single {item}]",
        "[duplicate|second] [payment|charge] [for order {order}|of {amount}], [why|please fix]",
    ),
    "payment failed": (
        "my [payment|card] [was declined|didn't go through|is refused][ at checkout|]",
        "i can't [pay|finish the payment] [with my card|for the {item}|at checkout]",
        "[the checkout|the payment page] [shows an error|hangs|fails] when i [pay|enter my card]",
        "[tried|i tried] {number} times to pay and [it fails|it always gets rejected]",
        "why is my [credit card|bank card] [not accepted|rejected][, there is money on it|]",
    ),
    "payment methods": (
        "[do you take|do you accept|can i use] [paypal|apple pay|cash on delivery|bank transfer|credit cards]",
        "[which|what] [ways to pay|payment methods|cards] do you [have|accept|offer]",
        "can i pay [in instalments|on invoice|by invoice|monthly] [for a {item}|]",
        "is [paying later|bank transfer|cash on delivery] [possible|an option]",
        "can i [split|spread] the payment [over {number} months|between two cards]",
    ),
    "invoice request": (
        "[i need|please send|can i get] [an invoice|a receipt|the bill] for [order {order}|the {item}|my taxes]",
        "where [can i|do i] [download|find] [the invoice|my receipt|my bills]",
        "my invoice [has the wrong name|lacks the vat number|must show my company]",
        "[no invoice|no receipt] [in the box|came with order {order}], [can you mail it|please send one]",
        "[resend|email me] the [receipt|invoice] [of order {order}|from {past}]",
    ),
    "promo code": (
        "[my|the] [discount|promo|voucher] code [doesn't work|is not accepted|says invalid|has expired]",
        "[where|how] do i [enter|use|apply] [a coupon|my discount code|a voucher]",
        "i forgot to [use|enter] my [coupon|promo code] [on order {order}|]",
        "can i [combine|use] two [codes|vouchers|coupons] [on one order|together]",
        "do you have [a discount|any coupons|a code] for [students|new customers|a first order]",
    ),
    "gift card": (
        "[how do i|where can i] [buy|order] a gift card[ for {amount}|]",
        "what is [left|the balance] on my gift card",
        "my gift card [of {amount}|] [isn't recognised|can't be redeemed|shows zero]",
        "[redeem|use] a gift card [for a {item}|when paying]",
        "[can|does] [gift cards|a gift card] [expire|be exchanged for cash]",
    ),
    "price match": (
        "i saw the [same |]{item} [cheaper|for less] [elsewhere|in another shop|at a competitor]",
        "[do you|can you] match [the price|prices] of [other shops|a competitor]",
        "the {item} [dropped|went down] [in price|by {amount}] [after i bought it|since], can i get the difference",
        "[another shop|a competitor] sells [this|the] {item} for {amount}, [can you beat that|can you do the same]",
    ),
    "stock availability": (
        "[is|do you have] the {colour} {item} [in stock|available]",
        "when [will|is] the {item} [be back|back in stock|available again]",
        "[the {item}|it] is sold out, [will you get more|can you tell me when it returns]",
        "how many {item}s [do you have left|are left]",
        "[notify me|send me a mail] when [the {item}|the {colour} {item}] is [available|in stock again]",
    ),
    "product information": (
        "[what size is|how big is|how heavy is] the {item}",
        "what is the {item} made of",
        "[is the {item} waterproof|does the {item} come with batteries|is the {item} easy to clean]",
        "[can you tell me more|i have a question|i'd like some details] about the {item}[ you sell|]",
        "which {item} [would you recommend|is best] for [a beginner|my mother|travelling]",
        "[is there a|what's the] difference between the {colour} and the {colour2} {item}[ besides the colour|]",
    ),
    "warranty": (
        "how long is the [warranty|guarantee] on [the|a] {item}",
        "is my {item} still [under|covered by the] [warranty|guarantee][, i bought it {past}|]",
        "[does the|what does the] [warranty|guarantee] cover [water damage|the battery|scratches|]",
        "[i want to|how do i] [claim|register|extend] [the warranty|my guarantee][ for the {item}|]",
    ),
    "reset password": (
        "i [forgot|lost|can't remember] my password",
        "[how do i|i want to|please] [reset|change] [my|the] password",
        "the [reset|password] [mail|link] [never comes|doesn't work|has expired]",
        "[need|i need] a new password [for my account|to log in|]",
    ),
    "account locked": (
        "my account [is|has been] [locked|blocked|suspended|disabled]",
        "[i can't|unable to] [log in|sign in|get into my account][, the password is right|, it says blocked|]",
        "[too many|after {number}] [login |]attempts [and now i'm locked out|and my account is blocked]",
        "[unlock|please unblock|why did you block] my account",
    ),
    "update account details": (
        "[i want to|how can i] [change|update] my [email|phone number|name|billing address] [in my account|on file|]",
        "i [got married|moved], [please change my name|my details have to be updated]",
        "my [phone number|email address] [has changed|is wrong in my profile]",
        "[replace|edit] the [email|number|name] [of|in] my [profile|account]",
    ),
    "delete account": (
        "[please |i want to |]delete my account[ and all my data|]",
        "[close|remove|erase] my [account|profile|customer account]",
        "[remove|erase] [all my data|everything you know about me]",
        "[i don't want to be a customer any more|i'm done with your shop], [close everything|remove me]",
    ),
    "cancel subscription": (
        "[i want to|please|how do i] [cancel|end|stop] my [subscription|membership|monthly box]",
        "[don't renew|stop renewing] my [subscription|membership|plan]",
        "i [don't use|no longer need] the [membership|monthly plan], [end it|no more payments]",
        "[get me out of|terminate] the [subscription|monthly plan][ before it renews|]",
    ),
    "newsletter": (
        "[stop sending|i don't want] [me |]your [emails|newsletter|advertising]",
        "[unsubscribe|take me off] [me from |]the [newsletter|mailing list]",
        "[how do i|i'd like to] [sign up for|get] [the newsletter|your offers by mail]",
        "i get too [many|much] [mails|adverts|advertising] from you",
    ),
    "loyalty points": (
        "how many [points|bonus points] do i have",
        "[my points|the points for order {order}] [are missing|were not added|disappeared]",
        "[how|where] can i [spend|redeem|use] my [points|bonus points|rewards]",
        "[when do|do] my [points|rewards] expire",
        "[what do i get|how does it work] with the [loyalty programme|bonus programme]",
    ),
    "speak to a human": (
        "[i want to|can i|let me] [talk|speak] to [a human|a real person|an agent|somebody]",
        "[connect me|put me through] [to|with] [an agent|your staff|someone who can help]",
        "[are you a robot|is this a bot], [i want a person|give me a human]",
        "[please call me|can someone ring me][ back|] [about order {order}|today|]",
        "what's your [phone number|hotline]",
    ),
    "make a complaint": (
        "[i want to|where can i] [complain|file a complaint|make a complaint][ about your service|]",
        "your [service|support|driver] [is|was] [terrible|rude|a disgrace]",
        "[the driver|the agent|your colleague] was [very rude|unfriendly][ to me|] {past}",
        "[i'm very|really] [unhappy|disappointed|angry] with [how i was treated|your service|your support]",
        "nobody [answers|reacts to] my [mails|messages], [this is unacceptable|i have had enough]",
    ),
    "give feedback": (
        "[how|where] can i [leave|write] a review [for the {item}|of my {item}|]",
        "[just wanted to say|i'd like to say] [thanks|the {item} is great|you did well]",
        "[great service|love the {item}], [keep it up|thank you]",
        "[i have|here is] [a suggestion|an idea|some feedback] for [your shop|the website]",
        "[happy with|really like] [the {item}|your shop], [five stars|where do i rate it]",
    ),
}

SLOTS: dict[str, tuple[str, ...]] = {
    "item": (
        "kettle", "jacket", "lamp", "phone case", "backpack", "desk", "toaster", "headset", "carpet", "mixer", "tent",
        "bike helmet", "raincoat", "monitor", "bookshelf", "blender", "watch", "pair of shoes", "speaker", "mattress",
    ),
    "colour": ("black", "white", "blue", "red", "green", "grey"),
    "city": ("Berlin", "Lyon", "Porto", "Graz", "Oslo", "Leeds", "Ghent", "Turin", "Cork", "Malmo"),
    "past": ("yesterday", "last week", "on Monday", "on Friday", "two days ago", "last month", "three weeks ago"),
    "duration": ("two days", "a week", "one month", "half a year", "only three uses", "an hour"),
    "number": ("two", "three", "four", "five", "six"),
    "order": (),
    "amount": (),
}  # fmt: skip
"""`order` and `amount` are drawn numbers; `other` and `colour2` are another value of `item` and `colour`."""

OPENINGS = (
    "hi", "hello", "hey", "good morning", "hi there", "hello team", "dear support", "excuse me", "quick question",
    "sorry to bother you", "hey guys", "good evening", "hi again",
)  # fmt: skip

BACKGROUND = (
    "i bought a {other} from you {past}", "i've been a customer for years", "my order number is {order}",
    "i paid {amount} by card", "it's a present for my sister", "i already wrote to you {past}",
    "my last delivery was perfect", "i got your newsletter {past}", "i have an account with you",
    "i returned a {other} once and that was easy", "i'm from {city}", "i looked at your website and found nothing",
    "i used a voucher", "the tracking page told me nothing new", "my {other} is fine by the way",
)  # fmt: skip

CLOSINGS = (
    "thanks", "thank you", "please help", "cheers", "thanks a lot", "i need this soon", "it's urgent",
    "please answer quickly", "best regards", "many thanks in advance", "hope you can help", "let me know",
)  # fmt: skip

SHORTHAND = (
    ("you", "u"), ("your", "ur"), ("please", "pls"), ("thanks", "thx"), ("are", "r"), ("because", "cos"),
    ("can't", "cant"), ("don't", "dont"), ("doesn't", "doesnt"), ("won't", "wont"), ("i'm", "im"), ("order", "ordr"),
    ("what's", "whats"), ("where's", "wheres"), ("something", "sth"), ("people", "ppl"), ("package", "pkg"),
)  # fmt: skip
