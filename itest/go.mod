module github.com/usp-project/usp/itest

go 1.26.0

require github.com/usp-project/usp v0.0.0

require (
	golang.org/x/sys v0.49.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/usp-project/usp => ..
