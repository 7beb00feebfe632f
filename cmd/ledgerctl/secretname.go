package main

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// secretWords are what a name ends in whose value is a secret.
	secretWords = wordSet(`pass password passwd passphrase pwd secret token credential credentials auth authorization bearer cookie signature sig sas
		otp pin`)
	// secretEnds are such words that also count glued to others: PGPASSWORD, mytoken.
	secretEnds = []string{"password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "credentials", "apikey", "accesskey",
		"privatekey", "secretkey", "accountkey", "sharedkey"}
	// harmlessPasses end in pass and are none: filters and loops.
	harmlessPasses = wordSet("bypass compass lowpass highpass bandpass allpass surpass overpass underpass multipass singlepass onepass twopass trespass")
	// harmlessKeys go before "key" where it is a column or a place.
	harmlessKeys = wordSet(`sort primary foreign partition group grouping join index cache row column label target feature id by data dict lookup
		merge order public image text input output state shard hash cluster dedup object name map record field item unique composite natural
		surrogate answer question prompt response reward action observation bucket s3 monitor metric score`)
	// harmlessTokens go before "token" where it is one of a vocabulary.
	harmlessTokens = wordSet("bos eos pad unk mask sep cls stop special start end image audio video next per begin")

	hump = regexp.MustCompile(`([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])`)
)

func wordSet(list string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(list) {
		set[w] = true
	}
	return set
}

// secretName reports whether the value of an option, variable, member or parameter of this name is a secret. The name must end in the word,
// so that --tokenizer and --token-count=5 stay readable.
func secretName(name string) bool {
	name = hump.ReplaceAllString(strings.TrimLeft(name, "-/"), "${1}${3}-${2}${4}") // awsSecretAccessKey, APIKey
	words := strings.FieldsFunc(strings.ToLower(name), func(c rune) bool { return strings.ContainsRune("-_.: ", c) })
	if len(words) == 0 {
		return false
	}
	last, before := words[len(words)-1], ""
	if len(words) > 1 {
		before = words[len(words)-2]
	}
	switch {
	case last == "id": // of something that is a secret by itself
		return before == "session" || before == "key" && len(words) > 2 && words[len(words)-3] == "access"
	case last == "sessionid", last == "accesskeyid":
		return true
	case last == "key":
		return !harmlessKeys[before]
	case last == "token" && harmlessTokens[before]:
		return false
	case secretWords[last]:
		return true
	case strings.HasSuffix(last, "pass"):
		return !harmlessPasses[last]
	}
	return slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(last, end) })
}

// isSecretOption reports whether the argument after this one is a secret: --token X. -p X is too short to tell.
func isSecretOption(arg string) bool {
	return strings.HasPrefix(arg, "-") && !strings.ContainsAny(arg, "=: \t/") && secretName(arg)
}

// isUserOption reports whether the argument after this one may be USER:PASSWORD.
func isUserOption(arg string) bool {
	return arg == "-u" || arg == "-U" || arg == "--user" || arg == "--proxy-user"
}
