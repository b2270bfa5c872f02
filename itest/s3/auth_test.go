package s3

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// authorize does what the server in this process does not: it checks the signature of a request (AWS Signature Version 4), and its body against the sum that was
// signed. It answers as S3 does, and is false then.
func authorize(w http.ResponseWriter, r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return refuse(w, http.StatusForbidden, "AccessDenied")
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[k] = v
	}
	id, scope, _ := strings.Cut(fields["Credential"], "/")
	if id != keyID {
		return refuse(w, http.StatusForbidden, "InvalidAccessKeyId")
	}
	payload := r.Header.Get("X-Amz-Content-Sha256")
	signed := strings.Split(fields["SignedHeaders"], ";")
	var canonical strings.Builder
	fmt.Fprintf(&canonical, "%s\n%s\n%s\n", r.Method, r.URL.EscapedPath(), sortedQuery(r.URL.Query()))
	for _, name := range signed {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&canonical, "%s:%s\n", name, strings.TrimSpace(value))
	}
	fmt.Fprintf(&canonical, "\n%s\n%s", fields["SignedHeaders"], payload)
	sum := sha256.Sum256([]byte(canonical.String()))
	text := fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%s", r.Header.Get("X-Amz-Date"), scope, hex.EncodeToString(sum[:]))
	key := []byte("AWS4" + secretKey)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac(key, text))), []byte(fields["Signature"])) {
		return refuse(w, http.StatusForbidden, "SignatureDoesNotMatch")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return refuse(w, http.StatusBadRequest, "IncompleteBody")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if payload == "UNSIGNED-PAYLOAD" && len(body) == 0 {
		return true
	}
	if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != payload {
		return refuse(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch")
	}
	return true
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func sortedQuery(q url.Values) string {
	var parts []string
	for k, vs := range q {
		for _, v := range vs {
			parts = append(parts, escape(k)+"="+escape(v))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// refuse answers with an error of S3.
func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s and more that could hold %s</Message></Error>", code, code, keyID)
	return false
}
