import hashlib, itertools, threading, time

table, primes, lock = {}, itertools.count(2), threading.Lock()
beats = 0

def sieve():
    found = []
    for n in primes:
        if all(n % p for p in found):
            found.append(n)
            yield n

def beat():
    global beats
    while True:
        time.sleep(0.05)
        with lock:
            beats += 1

threading.Thread(target=beat, daemon=True).start()
previous, seen = 0, 0
for number, prime in enumerate(sieve(), 1):
    table[number] = hashlib.sha256(str(prime).encode()).hexdigest()
    if prime <= previous or len(table) != number:
        print("FAIL prime", prime, "after", previous)
    for key in (1, number // 2 + 1):
        if len(table[key]) != 64:
            print("FAIL entry", key)
    if table[1] != hashlib.sha256(b"2").hexdigest():
        print("FAIL the first entry has changed")
    previous = prime
    if number % 20 == 0:
        with lock:
            if beats <= seen:
                print("FAIL the thread stands still at", beats)
            seen = beats
    print("round", number, "prime", prime)
    time.sleep(0.05)
